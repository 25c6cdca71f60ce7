"""What is measured: so many streams, a decode step every so often, so many steps. No behaviour but the arithmetic."""

import msgspec

RATE_TOKENS_PER_S = 10_500  # what the paced cases ask of the relay
LEAST_STEP_S = 0.005  # no decode step is shorter; so few streams ask for less than the rate
PRESET_STREAMS = (1, 16, 64, 256, 1000)
FLAT_OUT_STREAMS = 64
LEAST_STEPS = 20


class Case(msgspec.Struct, frozen=True):
    """One measurement; also the order that the simulated worker gets."""

    num_streams: int
    num_steps: int  # every stream gets one token per step, after the first, which prefill publishes
    step_s: float  # from the beginning of a step to that of the next; 0: flat out

    @property
    def num_tokens(self) -> int:
        """Tokens of all steps; the first token of each stream is in no figure."""
        return self.num_streams * self.num_steps

    @property
    def name(self) -> str:
        """In a few words."""
        return f"{self.num_streams}, flat out" if not self.step_s else f"{self.num_streams}"


def paced(num_streams: int, duration_s: float, rate_tokens_per_s: float = RATE_TOKENS_PER_S) -> Case:
    """A case of about `duration_s` at the rate, or at what steps of LEAST_STEP_S give."""
    step_s = max(LEAST_STEP_S, num_streams / rate_tokens_per_s)
    return Case(num_streams, max(LEAST_STEPS, round(duration_s / step_s)), step_s)


def flat_out(num_streams: int, num_tokens: int) -> Case:
    """A case in which each step begins when the one before is published."""
    return Case(num_streams, max(LEAST_STEPS, num_tokens // num_streams), 0.0)
