# Installs tritonserver from the wheel of nvidia-pytriton at /opt/tritonserver, for the system's Python of Debian or Ubuntu.
set -eu
# The Python backend's stub is linked against the shared library of exactly one minor version, and there must be a stub for it.
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
apt-get update -qq
apt-get install -y -qq --no-install-recommends "libpython$version" >/dev/null
rm -rf /var/lib/apt/lists/*
# NumPy 1: the stub of 2.51 was built against it. With NumPy 2 it loads, and every answer is
# `output tensor shape does not match size of output`.
python3 -m pip install --no-deps nvidia-pytriton==0.7.0 'numpy==1.26.*'
server=$(python3 -c 'import importlib.util as u; print(u.find_spec("pytriton").submodule_search_locations[0])')/tritonserver
cp "$server/python_backend_stubs/$version/triton_python_backend_stub" "$server/backends/python/"
rm -r "$server/python_backend_stubs"
chmod 755 "$server/bin/tritonserver" "$server/backends/python/triton_python_backend_stub"
ln -s "$server" /opt/tritonserver
