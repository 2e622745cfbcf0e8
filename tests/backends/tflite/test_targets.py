"""The shipped TFLite targets against what the lowering and the runtimes can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.backends.tflite import elementwise, lower, vela
from edgekit.rewrites import REWRITES
from edgekit.target import load_target

RECIPES = Path(__file__).parents[3] / "recipes"
NAMES = ("raspberry_pi5", "cortex_a53_tflite214", "imx93_ethos_u65")
KERNELS = {"Softmax": "SOFTMAX", "Sigmoid": "LOGISTIC", "Tanh": "TANH"}


@pytest.fixture(params=NAMES)
def target(request):
    return load_target(request.param, RECIPES)


def test_every_op_of_the_table_is_lowered_or_rewritten(target):
    known = lower.load_handlers()
    for op, rule in target.ops.items():
        name = op.partition(".")[0]
        if rule.rewrite is not None and not rule.rewrite.ranks:
            assert name not in known or rule.rewrite.by in REWRITES
            continue
        assert name in known, op
        rewritten = rule.rewrite.ranks if rule.rewrite is not None else ()
        assert set(rule.ranks) - set(rewritten) <= set(known[name]), op


def test_every_rewrite_of_a_target_exists(target):
    assert set(target.rewrites) <= set(REWRITES)


def test_forced_outputs_are_the_kernels_own(target):
    forced = {op: rule.int8_output for op, rule in target.ops.items() if rule.int8_output is not None}
    assert {"Sigmoid", "Tanh"} <= set(forced) <= set(KERNELS)
    for op, output in forced.items():
        quant = elementwise.FORCED[KERNELS[op]]
        assert (output.scale, output.zero_point) == (quant.scale[0], quant.zero_point[0]), op


def test_softmax_and_norms_stay_in_float_on_cpus():
    for name in NAMES[:2]:
        ops = load_target(name, RECIPES).ops
        assert not any(ops[op].int8 for op in ("Softmax", "LayerNormalization", "InstanceNormalization"))


def test_a_core_without_dot_product_multiplies_activations_in_float():
    """tests/backends/tflite/test_arm64.py shows what its INT8 kernel would compute."""
    target = load_target("cortex_a53_tflite214", RECIPES)
    assert "dotprod" not in target.device["isa"] and not target.ops["MatMul.activations"].int8


def test_what_vela_is_told_stands_in_the_target():
    options = vela.options(load_target("imx93_ethos_u65", RECIPES).spec())
    assert options == {"accelerator": "ethos-u65-256", "system_config": "Ethos_U65_High_End", "memory_mode": "Dedicated_Sram_384KB", "optimise": "Performance"}
