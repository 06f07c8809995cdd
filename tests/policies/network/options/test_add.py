"""A network with added options computes in the way of the given one."""

from __future__ import annotations

import pytest
import torch

from pitune.policies import FinetuneConfig, NetworkOptions, apply_finetuning
from pitune.policies.network.gemma import Gemma
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.language_head import LanguageHeadConfig
from pitune.policies.network.siglip import Siglip
from vision_policies import vision_policy

OPTIONS = NetworkOptions(language_head=LanguageHeadConfig(enabled=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_added_options_keep_precision_checkpointing_and_compilation(checkpointing: bool) -> None:
    config = FinetuneConfig(dtype="bfloat16", gradient_checkpointing=checkpointing)
    policy = apply_finetuning(vision_policy(), config)
    policy.compile_functions(backend="eager")
    policy.network.eval()
    extended = network_with_options(policy.network, OPTIONS, None)
    assert extended.compute_dtype == torch.bfloat16
    assert extended.compilation is policy.network.compilation is not None
    assert not extended.training
    towers = [part for part in extended.modules() if isinstance(part, Gemma | Siglip)]
    assert len(towers) == 3
    assert [tower.gradient_checkpointing for tower in towers] == 3 * [checkpointing]
    assert not any(part.training for part in extended.modules())


def test_without_compilation_none_is_added() -> None:
    policy = vision_policy()
    assert network_with_options(policy.network, OPTIONS, None).compilation is None
