"""Which layers a model has for K-FAC to precondition, found from its modules.

A weight that is trained is one layer, wherever it is used. It is left out if a module that K-FAC
does not know uses it too, or if two modules read it differently. A bias goes with its weight unless
the weight's uses differ in it or another weight has it too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from ._kfac_layers import ConvolutionSite, EmbeddingSite, Group, Layer, LinearSite, Shape, Site


def find_layers(
    model: nn.Module, groups: Mapping[Tensor, Group]
) -> tuple[list[Layer], dict[Tensor, str]]:
    """The layers that K-FAC preconditions, and what the model's other parameters are.

    Args:
        model: the model.
        groups: the parameters that are trained, each with its group.
    """
    uses: dict[Tensor, list[tuple[nn.Module, Site]]] = {}
    others: dict[Tensor, str] = {}
    for module in model.modules():
        sites = _sites(module)
        for site in sites:
            uses.setdefault(site.weight, []).append((module, site))
        known = {each for site in sites for each in (site.weight, site.bias)}
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in known:
                others[parameter] = f"{name} of {type(module).__name__}"
    names: dict[Tensor, str] = {theta: name for name, theta in model.named_parameters()}
    layers = []
    for weight, places in uses.items():
        sites = [site for _, site in places]
        shape = _common_shape(sites)
        if shape is None:
            others[weight] = "shared by layers that read it differently"
        elif weight in groups and weight not in others:
            bias, start = _common_bias(sites, groups)
            layers.append(Layer(names[weight], weight, bias, start, shape, groups[weight], places))
    _drop_shared_biases(layers)
    for places in uses.values():
        for _, site in places:
            if site.bias is not None:
                others.setdefault(site.bias, "bias that does not go with one preconditioned weight")
    return layers, others


def _sites(module: nn.Module) -> list[Site]:
    """The uses of a module's weights that K-FAC knows."""
    if isinstance(module, nn.MultiheadAttention) and _keeps(module, nn.MultiheadAttention):
        return _uses_in_attention(module)
    if isinstance(module, nn.Linear) and _keeps(module, nn.Linear):
        return [_linear(module)]
    if isinstance(module, nn.Embedding) and _keeps(module, nn.Embedding):
        return [] if module.scale_grad_by_freq else [EmbeddingSite(module)]
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(module, kind) and _keeps(module, kind):
            return [ConvolutionSite(module)]
    return []


def _keeps(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module of a subclass computes what the class does."""
    return all(
        getattr(type(module), name, None) is getattr(kind, name, None)
        for name in ("forward", "_conv_forward")
    )


def _linear(module: nn.Linear) -> LinearSite:
    return LinearSite(module.weight, module.bias, (1, *module.weight.shape))


def _uses_in_attention(module: nn.MultiheadAttention) -> list[Site]:
    width = module.embed_dim
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    bias = own.get("in_proj_bias")
    sites: list[Site] = [_linear(module.out_proj)]
    if "in_proj_weight" in own:
        sites.append(LinearSite(own["in_proj_weight"], bias, (3, width, width)))
    for number, name in enumerate(("q_proj_weight", "k_proj_weight", "v_proj_weight")):
        if name in own:
            sites.append(LinearSite(own[name], bias, (1, *own[name].shape), number * width))
    return sites


def _common_shape(sites: list[Site]) -> Shape | None:
    """(maps, outputs, inputs) of a weight, if it is the same wherever the weight is used."""
    shapes = {site.shape for site in sites if not isinstance(site, EmbeddingSite)}
    if len(shapes) == 1:
        ((maps, outputs, inputs),) = shapes
        tables = {site.shape for site in sites if isinstance(site, EmbeddingSite)}
        return (maps, outputs, inputs) if tables <= {(1, inputs, outputs)} else None
    return None if shapes else sites[0].shape


def _common_bias(sites: list[Site], groups: Mapping[Tensor, Group]) -> tuple[Tensor | None, int]:
    """The bias that goes with a weight wherever one can, if it is trained."""
    biases = {(site.bias, site.bias_start) for site in sites if not isinstance(site, EmbeddingSite)}
    if len(biases) == 1:
        ((bias, start),) = biases
        if bias is not None and bias in groups:
            return bias, start
    return None, 0


def _drop_shared_biases(layers: list[Layer]) -> None:
    """A bias that goes with several weights is preconditioned with none of them."""
    owners = Counter((layer.bias, layer.bias_start) for layer in layers)
    for layer in layers:
        if owners[layer.bias, layer.bias_start] > 1:
            layer.bias = None
