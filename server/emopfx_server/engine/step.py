"""One engine step: a forward pass over the packed batch, in which rows are read and rewritten.

Where rows are rewritten, the step is an nnsight trace. Where they are only read, hooks on the modules that nnsight's
Envoy names do the same for less: a trace hands control back and forth at every read.
"""

from collections.abc import Mapping
from typing import Any

import torch
from nnsight import save
from torch.utils.hooks import RemovableHandle

from emopfx_server.engine.capture import Layout
from emopfx_server.engine.interventions import Rewrite
from emopfx_server.engine.model import LoadedModel, Site, first_tensor, rows_of


class Step:
    """Runs the model once for a batch, and reads and rewrites what is asked for on the way.

    Must be called from one thread only: nnsight allows no other.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = loaded.model
        self._envoy = loaded.envoy
        self._layers_path = loaded.layers_path
        self._layer_outputs = [sites["output"] for sites in loaded.sites if "output" in sites]
        self._modules: dict[Site, tuple[Any, str]] = {}
        self._hooked: Layout | None = None
        self._hooks: list[RemovableHandle] = []
        self._reads: Mapping[Site, torch.Tensor] = {}

    def __call__(
        self,
        batch: dict[str, Any],
        layout: Layout | None,
        reads: Mapping[Site, torch.Tensor],
        rewrite: Rewrite | None = None,
    ) -> torch.Tensor:
        """Run one step.

        Args:
            batch: The forward pass's keyword arguments; ``input_ids`` is ``[1, tokens]``.
            layout: The sites to read, or None for none. They are read after they are rewritten.
            reads: Where they are read into, ``[tokens, width]`` for each site.
            rewrite: What is rewritten, or None for nothing.

        Returns:
            The logits, ``[1, tokens or requests, vocabulary]``.
        """
        if rewrite is None:
            self._hook(layout)
            self._reads = reads
            output = self._model(**batch)
        else:
            self._hook(None)
            self._reads = {}
            output = self._trace(batch, reads, rewrite)
        logits: torch.Tensor = output.logits
        return logits

    def _trace(self, batch: dict[str, Any], reads: Mapping[Site, torch.Tensor], rewrite: Rewrite) -> Any:
        rewritten = rewrite.sites(self._layer_outputs)
        # nnsight takes reads and writes in execution order only.
        sites = sorted(rewritten | reads.keys(), key=lambda site: site.order)
        visits = [(*self._module(site), site, site in rewritten, reads.get(site)) for site in sites]
        with self._envoy.trace(**batch) as tracer:
            for module, side, site, written, rows in visits:
                value = getattr(module, side)
                tensor = first_tensor(value)
                assert tensor is not None
                if written:
                    tensor = rewrite.apply(site, tensor)
                    setattr(module, side, (tensor, *value[1:]) if isinstance(value, tuple) else tensor)
                if rows is not None:
                    rows.copy_(rows_of(tensor))
            output = save(tracer.result)
        return output

    def _hook(self, layout: Layout | None) -> None:
        """Have the sites of ``layout``, and no others, read in every forward pass."""
        if layout is self._hooked:
            return
        for handle in self._hooks:
            handle.remove()
        self._hooks = [self._hook_site(site) for site in layout.sites] if layout else []
        self._hooked = layout

    def _hook_site(self, site: Site) -> RemovableHandle:
        envoy, side = self._module(site)
        module: torch.nn.Module = envoy._module
        # Rows are copied at once: a later in-place operation would change them.
        if side == "output":
            return module.register_forward_hook(lambda _, __, output: self._read(site, output))
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: self._read(site, (*args, *kwargs.values())), with_kwargs=True
        )

    def _read(self, site: Site, value: Any) -> None:
        tensor = first_tensor(value)
        assert tensor is not None
        self._reads[site].copy_(rows_of(tensor))

    def _module(self, site: Site) -> tuple[Any, str]:
        """The module that nnsight reads for a site, and which side of it."""
        if site not in self._modules:
            path, _, side = f"{self._layers_path}.{site.layer}.{site.hook_point}".rpartition(".")
            self._modules[site] = self._envoy.get(path), side
        return self._modules[site]
