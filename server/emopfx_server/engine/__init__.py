"""Continuous batching with activation capture: one forward pass per step, read by hooks or rewritten by nnsight."""

from nnsight._c import unmount

# nnsight gives every object in the process a `.save`, which classes that inspect themselves (anyio's) take for their
# own attribute and fail on. The engine saves with nnsight.save() instead.
if unmount is not None:  # None where nnsight's C extension was not built, and nothing was mounted
    unmount("save")
