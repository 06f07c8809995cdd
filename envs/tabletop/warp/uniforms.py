"""The random numbers of starts, computed on the device of their seeds.

These are the numbers of `numpy.random.default_rng(seed).random(8)`, bit for bit, for many seeds at
once: numpy's hash of a seed and its generator PCG64, in torch. So an episode has the same start on
every backend, and no seed or start passes through the host.

The hash is integer arithmetic with 32 bits, in int64. The generator multiplies numbers of 128 bits.
It is linear, so one product of float64 matrices gives all eight states. Its entries are whole
numbers below 2^53, which is exact in any order of summation.

Letters: N rows.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pitune.envs.tabletop.starts import NUM_UNIFORMS

# numpy's SeedSequence
_MASK = 0xFFFFFFFF
_INIT_A, _MULTIPLIER_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULTIPLIER_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = 0xCA01F9DD, 0x4973F715
_POOL, _WORDS = 4, 8
# PCG64
_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_LIMB_BITS, _LIMBS = 16, 8  # a number of 128 bits


def draw_device_uniforms(seeds: Tensor) -> Tensor:
    """Return the random numbers in [0, 1) of N seeds (N, 8) float64.

    Example:
        >>> import numpy as np
        >>> numbers = draw_device_uniforms(torch.tensor([7]))
        >>> bool((numbers[0].numpy() == np.random.default_rng(7).random(8)).all())
        True

    Args:
        seeds: Numbers in [0, 2^31) (N,) int64.
    """
    words = _seed_words(seeds)
    # the generator's two numbers of 128 bits, most significant half first
    state, sequence = _limbs(words[:, :4]), _limbs(words[:, 4:])
    # the increment is 2 * sequence + 1, and the first state is their sum
    increment = 2 * sequence
    increment[:, 0] += 1
    increment = _carried(increment)
    first = _carried(state + increment)
    # (N, 16) x (16, draws * limbs) -> (N, draws, limbs)
    inputs = torch.cat([first, increment], dim=1).double()
    states = _carried((inputs @ _transition(seeds.device)).long().unflatten(1, (-1, _LIMBS)))
    return _output(states)


def _seed_words(seeds: Tensor) -> Tensor:
    """Return numpy's eight words of 32 bits of each seed (N, 8) int64."""
    start, rounds, end = _factors(seeds.device)
    # the pool: the seed and three zeros, hashed
    pool = torch.zeros(len(seeds), _POOL, dtype=torch.int64, device=seeds.device)
    pool[:, 0] = seeds
    pool = _hashed(pool, start)
    # each number mixed into the three others
    for source in range(_POOL):
        number = pool[:, source]
        pool = _mixed(pool, _hashed(number[:, None], rounds[source]))
        pool[:, source] = number
    # the words, from the pool twice
    return _hashed(torch.cat([pool, pool], dim=1), end)


def _hashed(values: Tensor, factors: Tensor) -> Tensor:
    """Return hashes (N, n) of values (N, n) or (N, 1) of 32 bits, given factors (2, n)."""
    result = ((values ^ factors[0]) * factors[1]) & _MASK
    return result ^ (result >> 16)


def _mixed(left: Tensor, right: Tensor) -> Tensor:
    result = (_MIX_LEFT * left - _MIX_RIGHT * right) & _MASK
    return result ^ (result >> 16)


@functools.cache
def _factors(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of the three hashes: (2, 4), (4 sources, 2, 4 targets) and (2, 8).

    A number of the pool is not mixed with itself. These factors are 0 and not used.
    """
    first = _powers(_INIT_A, _MULTIPLIER_A, _POOL * _POOL + 1)
    last = _powers(_INIT_B, _MULTIPLIER_B, _WORDS + 1)
    rounds, used = torch.zeros(_POOL, 2, _POOL, dtype=torch.int64), _POOL
    for source in range(_POOL):
        for target in range(_POOL):
            if source != target:
                rounds[source, :, target] = torch.tensor(first[used : used + 2])
                used += 1
    start = torch.tensor([first[:_POOL], first[1 : _POOL + 1]])
    end = torch.tensor([last[:-1], last[1:]])
    return start.to(device), rounds.to(device), end.to(device)


def _powers(first: int, multiplier: int, number: int) -> list[int]:
    """Return the successive factors of a hash."""
    factors = [first]
    while len(factors) < number:
        factors.append(factors[-1] * multiplier & _MASK)
    return factors


def _limbs(words: Tensor) -> Tensor:
    """Return two words of 64 bits, each from two of 32, as limbs of 16 bits (N, 8).

    Args:
        words: (N, 4): the high word's low half and high half, and the low word's.
    """
    order = [words[:, column] for column in (2, 3, 0, 1)]  # least significant first
    halves = [part for word in order for part in (word & 0xFFFF, word >> _LIMB_BITS)]
    return torch.stack(halves, dim=1)


def _carried(limbs: Tensor) -> Tensor:
    """Return limbs (..., 8) that hold more than 16 bits as limbs of 16 bits, modulo 2^128."""
    carry, columns = 0 * limbs[..., 0], []
    for index in range(_LIMBS):
        total = limbs[..., index] + carry
        columns.append(total & 0xFFFF)
        carry = total >> _LIMB_BITS
    return torch.stack(columns, dim=-1)


def _output(states: Tensor) -> Tensor:
    """Return PCG64's numbers in [0, 1) from its states (N, 8 draws, 8 limbs)."""
    # xor of both halves, rotated by the six highest bits
    mixed = states[..., :4] ^ states[..., 4:]
    turn = states[..., 7] >> 10
    # int64 without its sign is the unsigned number: shifts to the right are masked
    word = sum(mixed[..., index] << (_LIMB_BITS * index) for index in range(4))
    right = (word >> turn) & ~((-1 << (63 - turn)) << 1)
    rotated = right | (word << ((64 - turn) & 63)) * (turn > 0)
    fraction = (rotated >> 11) & ((1 << 53) - 1)
    return fraction.double() * 2.0**-53


@functools.cache
def _transition(device: torch.device) -> Tensor:
    """Return the matrix (16, draws * limbs) from the first state and the increment to all states.

    State k is `first * m^(k+1) + increment * (1 + m + ... + m^k)`, for k = 1, 2, ...
    """
    modulus = 1 << (_LIMB_BITS * _LIMBS)
    factors, power, total = [], _MULTIPLIER, 1
    for _ in range(NUM_UNIFORMS):
        total = (total + power) % modulus
        power = power * _MULTIPLIER % modulus
        factors.append((power, total))
    matrix = torch.zeros(2, _LIMBS, NUM_UNIFORMS, _LIMBS, dtype=torch.float64)
    for draw, pair in enumerate(factors):
        for which, factor in enumerate(pair):
            for low in range(_LIMBS):
                for high in range(_LIMBS - low):
                    limb = factor >> (_LIMB_BITS * high) & 0xFFFF
                    matrix[which, low, draw, low + high] = limb
    return matrix.flatten(2).flatten(0, 1).to(device)
