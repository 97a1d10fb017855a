"""Costs by arithmetic: equal to the traced program's, and the paper's."""

import pytest
from helpers import merged
from hypothesis import given
from hypothesis import strategies as st

from ldmscale.cells.cost import (
    UNetShape,
    adapter_macs,
    codi_ratio,
    flops,
    model_shape,
    norm_costs,
    params,
    steps_at_cost,
    unet_flops,
    unet_params,
)
from ldmscale.cells.paper import paper_shape
from ldmscale.config.study import Study
from ldmscale.models.flops import codi_cost, network_cost
from ldmscale.models.network import net_config
from ldmscale.models.unet import UNetConfig

# filters, channel_mult, blocks, attention, latent, channels, (tokens, width), heads, groups
SHAPES = [
    (4, (1, 2), 1, (True, False), 8, 4, (12, 16), 2, 2),
    (8, (1, 2, 4), 1, (True, True, False), 8, 4, (32, 64), 4, 4),
    (8, (1, 2, 4), 2, (True, True, True), 7, 3, (5, 24), 4, 4),
    (4, (1, 2, 4, 4), 2, (True, True, True, False), 9, 4, (77, 32), 2, 4),
    (4, (1, 1, 1, 1), 1, (False, True, False, True), 5, 4, (3, 8), 4, 2),
    (6, (2, 3), 3, (False, False), 3, 1, (1, 2), 3, 3),
    (8, (1,), 2, (False,), 1, 4, (7, 8), 8, 8),
    (8, (1, 2), 1, (True, True), 2, 4, (16, 8), 4, 4),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_arithmetic_is_the_traced_programs_count(shape):
    filters, mult, blocks, attention, size, channels, context, heads, groups = shape
    config = UNetConfig(
        filters, mult, blocks, attention, heads=heads, norm_groups=groups, context_width=context[1],
        in_channels=channels, out_channels=channels,
    )  # fmt: skip
    arithmetic = UNetShape(filters, mult, blocks, attention, size, channels, context)
    traced = network_cost(config, size, context[0])
    assert unet_flops(arithmetic) == traced.flops
    assert unet_params(arithmetic) == traced.params
    adapted = codi_cost(config, size, context[0])
    assert 2 * adapter_macs(arithmetic) == adapted.flops - traced.flops
    assert codi_ratio(arithmetic) == pytest.approx(adapted.flops / traced.flops)


@pytest.mark.parametrize("overlays", [(), ("smoke.yaml",), ("families.yaml",)])
def test_the_studies_costs_are_their_networks(overlays):
    study = Study(merged(*overlays))
    for model in study.models.values():
        traced = network_cost(
            net_config(study.net_params(model.name)), study.latent_size, study.config["tokenizer"]["context_length"]
        )
        shape = model_shape(study, model)
        assert (flops(shape), params(shape)) == (traced.flops, traced.params)


def test_the_embedded_family_spans_an_order_of_magnitude_in_cost():
    norm = list(norm_costs(Study(merged())).values())
    assert len(norm) >= 4
    assert norm == sorted(norm)
    assert norm[-1] / norm[0] >= 10


# The paper's family on 64 x 64 x 4 latents, GFLOPs as 2 MAC from the widths; its Table 1 rounds other counts of the
# same networks to within 3 %, but for the 39M row, which is off by two (25.3, against .07 in its own next column).
TABLE_1 = {64: 53.0, 96: 99.7, 128: 159.9, 160: 233.6, 192: 320.8, 224: 421.4, 256: 535.6, 288: 663.2, 320: 804.3,
           512: 1933.9, 768: 4195.1}  # fmt: skip
PARAMS = {64: 38.8, 96: 83.4, 128: 144.8, 160: 223.0, 192: 318.0, 224: 429.8, 256: 558.3, 288: 703.7, 320: 865.9,
          512: 2191.7, 768: 4900.2}  # fmt: skip


@pytest.mark.parametrize("filters", TABLE_1)
def test_the_papers_gflops_and_parameters(filters):
    assert unet_flops(paper_shape(filters)) / 1e9 == pytest.approx(TABLE_1[filters], abs=0.06)
    assert round(unet_params(paper_shape(filters)) / 1e6, 1) == PARAMS[filters]


PRINTED = {"83M": 0.13, "145M": 0.20, "223M": 0.30, "318M": 0.40, "430M": 0.53, "558M": 0.67, "704M": 0.83,
           "866M": 1.00, "2B": 2.39, "5B": 5.17}  # fmt: skip


def test_the_papers_normalised_costs():
    norm = norm_costs(Study(merged("paper.yaml")))
    for model, printed in PRINTED.items():
        assert norm[model] == pytest.approx(printed, rel=0.05)
    assert norm["39M"] == pytest.approx(0.066, abs=0.001)
    assert norm["866M"] == 1.0


def test_the_papers_adapters_cost_a_third():
    # CoDi (arXiv 2310.01407) on the 866M network, and the family's ends.
    assert codi_ratio(paper_shape(320)) == pytest.approx(1.335, abs=5e-4)
    assert codi_ratio(paper_shape(64)) == pytest.approx(1.361, abs=5e-4)
    assert codi_ratio(paper_shape(768)) == pytest.approx(1.327, abs=5e-4)


def test_steps_at_the_papers_costs():
    norm = norm_costs(Study(merged("paper.yaml")))
    # Fig. 10 and 21-23 by the recomputed costs.
    assert [steps_at_cost(6, norm[m]) for m in ("83M", "318M", "866M")] == [48, 15, 6]
    assert [steps_at_cost(18, norm[m]) for m in ("145M", "558M", "866M")] == [91, 27, 18]
    assert steps_at_cost(1, norm["5B"]) == 1


@given(st.floats(0.01, 1e4), st.floats(0.01, 100))
def test_steps_at_cost_is_the_nearest_whole_step_and_at_least_one(cost, norm):
    steps = steps_at_cost(cost, norm)
    assert steps >= 1
    assert steps == 1 or abs(steps * norm - cost) <= norm / 2 * (1 + 1e-9)
