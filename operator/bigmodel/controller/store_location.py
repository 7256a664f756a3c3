"""Where a store is, as pods see it: the same for training and serving. Pure."""

from bigmodel.api.run import StoreLocation
from bigmodel.api.store import Store

STORE_DIRECTORY = "/store"  # where a PersistentVolumeClaim store is mounted, in training and serving pods alike


def store_location(store: Store) -> StoreLocation:
    if store.s3 is not None:
        prefix = f"/{store.s3.prefix.strip('/')}" if store.s3.prefix else ""
        return StoreLocation(uri=f"s3://{store.s3.bucket}{prefix}", endpoint=store.s3.endpoint, region=store.s3.region)
    claim = store.persistent_volume_claim
    path = f"/{claim.path.strip('/')}" if claim is not None and claim.path else ""
    return StoreLocation(uri=f"file://{STORE_DIRECTORY}{path}")
