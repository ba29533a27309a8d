import pytest
import torch
from torch import nn

from xelm_nemo.ensemble.shelf import Shelf, place, size_bytes

CPU = torch.device("cpu")


def models(count):
    return [nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).eval() for _ in range(count)]


@pytest.mark.parametrize(
    "sizes, room, expected",
    [
        ([4, 4, 4], [12], [0, 0, 0]),
        ([4, 4, 4], [20, 20], [0, 0, 0]),
        ([4, 4, 4], [9, 5], [0, 0, 1]),
        ([4, 4, 4], [3, 12], [1, 1, 1]),
        ([4, 4, 4], [9, 3], None),
        ([], [1], []),
    ],
)
def test_models_go_where_there_is_room(sizes, room, expected):
    assert place(sizes, room) == expected


def test_tied_weights_are_counted_once():
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert size_bytes(tied) == 9 * 4


@pytest.mark.parametrize("room", [10_000, 10])
@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [3], [1, 4], [0, 1], []])
def test_models_compute_the_same_wherever_they_wait(room, chosen):
    modules, x = models(5), torch.randn(4, 3)
    expected = [module(x) for module in modules]
    shelf = Shelf(modules, [CPU], [room])
    for _ in range(2):  # the second round finds weights on the device
        visits = [(index, module(x)) for index, module, _ in shelf.visit(chosen)]
        assert [index for index, _ in visits] == chosen
        for index, found in visits:
            assert torch.equal(found, expected[index])


def test_two_models_at_most_are_on_a_device_that_is_too_small():
    modules = models(5)
    shelf = Shelf(modules, [CPU], [10])
    own = {weight.data_ptr() for module in modules for weight in module.parameters()}
    lent = set()
    for _, module, _ in shelf.visit([0, 1, 2, 3, 4]):
        lent |= {module[0].weight.data_ptr()}
        assert not lent & own
        assert sum(m[0].weight.data_ptr() in own for m in modules) == 4
    assert len(lent) == 2


def test_the_next_model_is_on_its_way_while_one_runs():
    shelf = Shelf(models(3), [CPU], [10])
    held = [{slot.holds for slot in shelf._slots} for _ in shelf.visit([0, 1, 2])]
    assert held == [{0, 1}, {1, 2}, {1, 2}]


def test_an_error_while_a_model_runs_leaves_it_its_own_weights():
    modules = models(2)
    own = modules[0][0].weight.data_ptr
    shelf = Shelf(modules, [CPU], [10])
    before = own()
    visits = shelf.visit([0, 1])
    next(visits)
    visits.close()
    assert own() == before
