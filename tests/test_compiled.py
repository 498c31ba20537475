"""Compiled networks: the same answers, and one graph whatever the classes.

A backend that runs the graph as it is takes torch's compiler for C++ out of the test, but nothing of ours.
"""

from __future__ import annotations

import pytest
import torch
from test_networks import conditional
from torch import Tensor, nn

from dode.denoisers import EDMPrediction
from dode.denoisers.conditioning import class_labels
from dode.distillation.designer import bottleneck
from dode.sampling import initial_noise, sample
from dode.schedules import EDM
from dode.solvers import ipndm
from dode.training import Training, build_denoiser, denoiser_loss

pytestmark = pytest.mark.slow


class Graphs(list[torch.fx.GraphModule]):
    """A backend that keeps the graphs it is given, and runs them as they are."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        self.append(graph)
        return graph.forward


def test_a_compiled_network_takes_classes_as_an_input() -> None:
    net, graphs = conditional(), Graphs()
    make = lambda network: EDMPrediction(network, (3, 16, 16), EDM(), conditioning=class_labels(5, "all"))  # noqa: E731
    plain, compiled = make(net), make(torch.compile(net, backend=graphs))
    table = ipndm(plain.grid(3))
    with torch.no_grad():
        for seeds in ([0, 1, 2], [7, 8, 4], [3, 3, 9]):
            found, expected = (sample(d.of(seeds), table, initial_noise((3, 16, 16), seeds)) for d in (compiled, plain))
            torch.testing.assert_close(found, expected)
    assert len(graphs) == 1
    with pytest.raises(ValueError, match="has no bottleneck that is known"):  # hooks are no part of a graph
        bottleneck(compiled)


def test_new_labels_do_not_compile_the_network_again() -> None:
    """Labels change with every batch; a network that is compiled, as on a GPU, must take them as an input."""
    r = Training("imagenet32-data", steps=6, batch=4, bf16=False, drop=0.3, network=dict(widths=(8, 16), heads=2))
    plain, d = build_denoiser(r), build_denoiser(r)
    assert isinstance(d.network, nn.Module) and isinstance(plain.network, nn.Module)
    plain.network.load_state_dict(d.network.state_dict())
    graphs = Graphs()
    d.network = torch.compile(d.network, backend=graphs)
    images = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
    losses_of = [denoiser_loss(x, images, torch.arange(20), r) for x in (plain, d)]
    for seed in range(3):
        expected, found = (loss(torch.Generator().manual_seed(seed)) for loss in losses_of)
        torch.testing.assert_close(found, expected)
    assert len(graphs) == 1, f"{len(graphs)} graphs"
