"""Files that are copied into Triton's model repository and run there. They import nothing of bigmodel: Triton's Python
has none of it.
"""
