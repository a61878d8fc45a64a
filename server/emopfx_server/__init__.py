"""An OpenAI-compatible server that captures hidden activations per request, while the model generates."""

from importlib.metadata import version

__version__ = version("emopfx-server")
