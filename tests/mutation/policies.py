"""Mutants of the flow, its likelihoods and the preprocessing."""

from __future__ import annotations

from tests.mutation.mutant import Change, Mutants

_FLOW = "tests/policies/flow"
_LIKELIHOOD = "tests/policies/likelihood"
_PREPROCESSING = "tests/policies/preprocessing"
FLOW = (
    f"{_FLOW}/test_by_hand.py",
    f"{_FLOW}/test_path.py",
    f"{_FLOW}/test_ode.py",
    f"{_FLOW}/test_chain.py",
    f"{_FLOW}/test_kernels.py",
)
LIKELIHOOD = (
    f"{_LIKELIHOOD}/test_reductions.py",
    f"{_LIKELIHOOD}/test_likelihood.py",
    f"{_LIKELIHOOD}/test_noise_entries.py",
    "tests/rl/algorithms/test_fpo.py",
)
PREPROCESSING = (
    f"{_PREPROCESSING}/test_relative_actions.py",
    f"{_PREPROCESSING}/test_parts.py",
    f"{_PREPROCESSING}/test_preprocessor.py",
    f"{_PREPROCESSING}/test_model_input.py",
    f"{_PREPROCESSING}/test_critic_input.py",
)

POLICIES = [
    Mutants(
        "policies/flow/path.py",
        FLOW,
        [
            Change(
                "path runs the other way",
                "return flow_time * noise + (1 - flow_time) * action",
                "return flow_time * action + (1 - flow_time) * noise",
            ),
            Change("velocity reversed", "return noise - action", "return action - noise"),
            Change("end of the line", "return x - flow_time * velocity", "return x + velocity"),
            Change(
                "start of the line",
                "return x + (1 - flow_time) * velocity",
                "return x + flow_time * velocity",
            ),
            Change(
                "sign of the score",
                "return -predicted_noise(x, velocity, flow_time)",
                "return predicted_noise(x, velocity, flow_time)",
            ),
            Change("law of training times", ".pow(2 / 3)", ".pow(3 / 2)"),
            Change("least training time", "* 0.999 + FIRST_FLOW_TIME", "* 0.999"),
            Change(
                "times ascend",
                "return 1 - steps / self.flow_steps",
                "return steps / self.flow_steps",
            ),
            Change("accumulated step", "-1 / self.flow_steps", "-1 / (self.flow_steps + 1)"),
            Change(
                "length of a step", "return 1 / self.flow_steps", "return 0.5 / self.flow_steps"
            ),
        ],
    ),
    Mutants(
        "policies/flow/ode.py",
        FLOW,
        [
            Change(
                "middle of midpoint",
                "half = x - 0.5 * grid.dt * velocity",
                "half = x - grid.dt * velocity",
            ),
            Change("time of midpoint", "field(half, t - 0.5 * grid.dt)", "field(half, t)"),
            Change("mean of heun", "velocity = 0.5 * (velocity + end)", "velocity = end"),
            Change("time of heun", "times[k + 1].expand_as(t)", "times[k].expand_as(t)"),
            Change(
                "direction of a step",
                "        x = x - grid.dt * velocity",
                "        x = x + grid.dt * velocity",
            ),
            Change("sign of the divergence", "return prior + total", "return prior - total"),
            Change(
                "constant of the density",
                "noise.square() + math.log(2 * math.pi)",
                "noise.square() + math.log(math.pi)",
            ),
            Change(
                "mean of the probes",
                "divergence = divergence / len(probes)",
                "divergence = 1 * divergence",
            ),
        ],
    ),
    Mutants(
        "policies/flow/kernels.py",
        FLOW,
        [
            Change(
                "direction of the ode",
                "return Transition(x - grid.dt * output.velocity, x.new_zeros(()))",
                "return Transition(x + grid.dt * output.velocity, x.new_zeros(()))",
            ),
            Change(
                "diffusion without root",
                "(t / (1 - torch.minimum(t, latest))).sqrt()",
                "(t / (1 - torch.minimum(t, latest)))",
            ),
            Change("sign of the drift", "next_t - g.square()", "next_t + g.square()"),
            Change("size of the drift", "grid.dt / (2 * t)", "grid.dt / t"),
            Change("noise of a step", "g * math.sqrt(grid.dt)", "g * grid.dt"),
            Change("mask of flow-sde", "g = g * mask_at(self.mask, step)", "g = 1.0 * g"),
            Change("weight of the action", "(1 - next_t) * action", "(1 - t) * action"),
            Change("mask of flow-noise", "std = std * mask_at(self.mask, step)", "std = 1.0 * std"),
            Change(
                "time of the learned noise",
                "grid.times(x.device)[step])",
                "grid.times(x.device)[step + 1])",
            ),
            Change("volume of the density", "- safe.log()", "+ safe.log()"),
            Change("exponent of the density", "-0.5 * z.square()", "-z.square()"),
            Change(
                "density of fixed entries",
                "return torch.where(random, density, torch.zeros_like(density))",
                "return density",
            ),
            Change("ratio in the divergence", "(other / std).log()", "(std / other).log()"),
            Change("scale in the divergence", "(2 * other.square())", "(2 * std.square())"),
            Change(
                "divergence of fixed entries",
                "return torch.where(random, divergence, torch.zeros_like(divergence))",
                "return divergence",
            ),
        ],
    ),
    Mutants(
        "policies/flow/chain.py",
        FLOW,
        [
            Change("random step inverted", "(stochastic_step == k)", "(stochastic_step != k)"),
            Change(
                "noise of other steps",
                "torch.where(is_random, transition.std, torch.zeros_like(transition.std))",
                "transition.std",
            ),
            Change(
                "scored backwards",
                "x, x_next = chain[rows, step], chain[rows, step + 1]",
                "x_next, x = chain[rows, step], chain[rows, step + 1]",
            ),
            Change(
                "time of scoring",
                "grid.times(chain.device)[step]",
                "grid.times(chain.device)[step + 1]",
            ),
            Change(
                "density of one step",
                "log_density.sum(1, keepdim=True)",
                "log_density.mean(1, keepdim=True)",
            ),
            Change(
                "precision of sampling", "_float32(field(x, times[step]))", "field(x, times[step])"
            ),
            Change(
                "size of the noise",
                "transition.std * torch.randn_like(transition.mean)",
                "transition.std.square() * torch.randn_like(transition.mean)",
            ),
            Change("other steps stand still", "ode_step(x, output, step, grid).mean", "x"),
        ],
    ),
    Mutants(
        "policies/likelihood/distributions.py",
        LIKELIHOOD,
        [
            Change(
                "mean of entries",
                "steps = steps / self.num_scored",
                "steps = steps / entries[0, 0].numel()",
            ),
            Change("product of ratios", "steps.sum(-1) if", "steps.mean(-1) if"),
            Change("entropy of fixed entries", "math.e)) * random", "math.e))"),
            Change(
                "divisor of the entropy",
                "/ random.flatten(1).sum(-1)",
                "/ random[0].numel()",
            ),
            Change("constant of the entropy", "2 * math.pi * math.e", "2 * math.pi"),
            Change(
                "noise on entries that are not executed",
                "torch.randn_like(noise) * mask",
                "torch.randn_like(noise)",
            ),
            Change("weight of the noise's loss", "(1 - time).square()", "time.square()"),
            Change(
                "mean loss",
                "loss = loss / self.mask.sum((-2, -1))",
                "loss = loss / error[0, 0].numel()",
            ),
            Change(
                "clamp of the loss",
                "clamp(max=self.config.loss_clamp)",
                "clamp(min=self.config.loss_clamp)",
            ),
            Change("mean over draws", "-loss.mean(1) if", "-loss.sum(1) if"),
            Change("loss of padding", ".square() * self.mask", ".square()"),
            Change(
                "path of the loss",
                "interpolate(action, self.noise, time)",
                "interpolate(self.noise, action, time)",
            ),
            Change(
                "target of the loss",
                "target_velocity(action, self.noise)",
                "target_velocity(self.noise, action)",
            ),
            Change("scored end", "action = value[:, -1:]", "action = value[:, :1]"),
            Change("end of the exact density", "value[:, -1].detach()", "value[:, 0].detach()"),
        ],
    ),
    Mutants(
        "policies/likelihood/whole_chunk.py",
        LIKELIHOOD,
        [
            Change(
                "times of the grid", "grid.times()[torch.randint", "grid.times()[1 + torch.randint"
            ),
            Change(
                "uniform times touch the ends",
                "0.005 + 0.99 * torch.rand(shape)",
                "torch.rand(shape)",
            ),
            Change("training times", "sample_flow_time(num).reshape(shape)", "torch.rand(shape)"),
            Change(
                "mask of the loss",
                "mask = policy.executed_mask(context)",
                "mask = torch.ones_like(policy.executed_mask(context))",
            ),
        ],
    ),
    Mutants(
        "policies/likelihood/flow_steps.py",
        LIKELIHOOD,
        [
            Change(
                "always the first step",
                "torch.randint(policy.grid.flow_steps, (num,)",
                "torch.randint(1, (num,)",
            ),
            Change(
                "number of scored entries",
                "num = mask.sum((-2, -1))",
                "num = torch.ones_like(mask).sum((-2, -1))",
            ),
            Change("entries of another step", "num[step][:, None]", "num[0 * step][:, None]"),
            Change(
                "noise of the last step everywhere", "mask[..., -1, :, :] =", "mask[..., 0, :, :] ="
            ),
            Change(
                "noise on all entries never",
                'if config.noise_entries == "executed" or',
                'if config.noise_entries == "all" or',
            ),
            Change("last step", "policy.grid.flow_steps - 1", "0 * policy.grid.flow_steps"),
            Change("deviation of fixed entries", "dist.scored_std > 0", "dist.scored_std >= 0"),
            Change(
                "noise everywhere",
                "FlowSDE(self.config.noise_level, mask)",
                "FlowSDE(self.config.noise_level)",
            ),
        ],
    ),
    Mutants(
        "policies/likelihood/heads.py",
        LIKELIHOOD,
        [
            Change("range of the noise", "0.5 * (torch.tanh", "1.0 * (torch.tanh"),
            Change(
                "lower bound of the noise", "self.log_min + fraction", "self.log_max - fraction"
            ),
            Change("noise of a velocity", "return self.dt * self.head", "return self.head"),
            Change("start of the velocity's noise", "math.log(std / dt)", "math.log(std)"),
        ],
    ),
    Mutants(
        "policies/preprocessing/preprocessor.py",
        PREPROCESSING,
        [
            Change("delta mask inverted", " * self.delta_mask)", " * ~self.delta_mask)"),
            Change(
                "delta of absolute dimensions",
                " * self.delta_mask)[..., None, :]",
                ")[..., None, :]",
            ),
            Change(
                "delta added on the way in",
                "action = action - self._origin(state)",
                "action = action + self._origin(state)",
            ),
            Change(
                "delta subtracted on the way out",
                "action = action + self._origin(state)",
                "action = action - self._origin(state)",
            ),
            Change("epsilon of quantiles", "scale + epsilon / 2", "scale + epsilon"),
            Change("half the range", "(high - low) / 2", "(high - low)"),
            Change("floor of the scale", "clamp(min=config.min_scale)", "clamp(min=0)"),
            Change("shift of quantiles", "self._shift = 1.0 if", "self._shift = 0.5 if"),
            Change(
                "epsilon on the way out", "config, config.epsilon_out", "config, config.epsilon"
            ),
            Change(
                "raw state normalized",
                '"robot_state": state.float()',
                '"robot_state": values["state"]',
            ),
            Change("joints of the prompt", "self._joints(state).double()", "state.double()"),
            Change("joints of the state", "return aloha.state_to_pi(state) if", "return state if"),
            Change("reported dimensions", "self.config) < scale)", "self.config) > scale)"),
            Change(
                "actions scaled as states",
                "_buffers(config.action, config, config.epsilon)",
                "_buffers(config.state, config, config.epsilon)",
            ),
            Change(
                "shift on the way out",
                " : self.action_dim] + self._shift",
                " : self.action_dim] - self._shift",
            ),
        ],
    ),
    Mutants(
        "policies/preprocessing/aloha.py",
        PREPROCESSING,
        [
            Change("sign of a joint", "(1.0, -1.0, -1.0, 1.0", "(1.0, -1.0, 1.0, 1.0"),
            Change("origin of a gripper", "+ _JOINT[0] - _ANGLE[0])", "+ _JOINT[0])"),
            Change("linkage of a gripper", "distance**2 - _ARM**2", "distance**2 + _ARM**2"),
            Change(
                "gripper on the way out",
                "(action + _ANGLE[0] - _JOINT[0])",
                "(action - _ANGLE[0] - _JOINT[0])",
            ),
        ],
    ),
    Mutants(
        "policies/preprocessing/norm_stats.py",
        PREPROCESSING,
        [
            Change("deviation of a sample", "correction=0", "correction=1"),
            Change("quantiles", "[0.01, 0.99]", "[0.0, 1.0]"),
            Change("missing range", "min_scale - (q99 - q01) / 2", "min_scale - (q99 - q01)"),
            Change("flat dimensions", "- low[i] < 2 * min_scale", "- low[i] < min_scale"),
            Change("first dimensions", "row[:dim] for", "row[-dim:] for"),
        ],
    ),
    Mutants(
        "policies/preprocessing/prompt.py",
        PREPROCESSING,
        [
            Change("bin of a number", "right=True) - 1", "right=True)"),
            Change("edge of a bin", "right=True)", "right=False)"),
            Change(
                "padding of the written state",
                "config.state_padding - state.shape[-1]",
                "0 * state.shape[-1]",
            ),
            Change("mask of a prompt", "mask[i, :length] = True", "mask[i, : length - 1] = True"),
            Change("underscores", '.replace("_", " ")', ""),
            Change(
                "prompts without words",
                "if not instruction.strip() and",
                "if not instruction and",
                (f"{_PREPROCESSING}/test_prompt.py",),
            ),
        ],
    ),
    Mutants(
        "policies/preprocessing/images.py",
        PREPROCESSING,
        [
            Change("range of bytes", "/ 255 * 2 - 1 if", "/ 255 if"),
            Change(
                "place of a picture",
                "framed[top : top + height, left : left + width] =",
                "framed[:height, :width] =",
            ),
            Change("range of floats", "dim=1) * 2 - 1", "dim=1)"),
            Change(
                "shape of a picture",
                "ratio = max(height, width) / size",
                "ratio = min(height, width) / size",
            ),
        ],
    ),
    Mutants(
        "policies/preprocessing/model_input.py",
        PREPROCESSING,
        [
            Change(
                "task of a row",
                "return tokens[task_id],",
                "return tokens[0 * task_id],",
            ),
            Change(
                "task of a written state",
                "self._tasks[i] for i in tasks",
                "self._tasks[0 * i] for i in tasks",
            ),
        ],
    ),
    Mutants(
        "policies/preprocessing/critic_input.py",
        PREPROCESSING,
        [
            Change("gradient to the encoder", "features.detach().float()", "features.float()"),
            Change(
                "lower bound of a state",
                "[state.clamp(-LARGEST_STATE, LARGEST_STATE)]",
                "[state.clamp(max=LARGEST_STATE)]",
            ),
        ],
    ),
]
