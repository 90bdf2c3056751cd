"""How every test runs: on the CPU, with shapes and types checked, and reproducibly."""

import os

# Before anything imports jax: a test must not grab an accelerator that a run is using.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A persistent cache would hide what a test compiles, and couple one test session to another.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import hypothesis
from jaxtyping import install_import_hook

# Every annotation in the package (jaxtyping's shapes included) is checked at every call.
install_import_hook("implicit_reasoning", "beartype.beartype")

hypothesis.settings.register_profile("local", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
