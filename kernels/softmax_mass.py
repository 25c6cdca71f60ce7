"""The softmax's numerators as integers, so that their sums depend on no order and equal ones on every device are equal.

exp(logit - largest) in units of 2**-40, from float32 products and sums that are each rounded on their own: IEEE 754
leaves them one result, as long as nobody contracts a product and a sum into one operation. Twin of the same lines in
`kernels/gpu/sampling.py`.
"""

import torch
from torch import Tensor

FRACTION_BITS = 40  # 2**23 ids of the largest logit still sum up inside an int64
LOG2_E = 1.4426950216293335  # float32's, as are all of these
# 2**f = 1 + f * (C1 + f * (C2 + ...)) for f in [-1, 0], relative error at most 2.5e-7: a weighted least squares fit.
POWER = (0.6931437253952026, 0.2401801496744156, 0.0552973598241806, 0.009205799549818039, 0.0009449043427594006)
LOWEST_POWER = -64.0  # anything below -FRACTION_BITS is no unit at all


def softmax_mass(logits: Tensor, largest: Tensor) -> Tensor:
    """round_down(exp(logits - largest) * 2**40), int64 in 0..2**40. Both float32, broadcast; largest is finite.

    Relative error 2e-6 at most, 3e-7 near the largest, besides the one unit of the rounding.
    """
    power = (logits - largest).mul_(LOG2_E).clamp_(min=LOWEST_POWER)
    whole = power.trunc()
    fraction = power.sub_(whole)
    value = fraction * POWER[-1]
    for coefficient in POWER[-2::-1]:
        value = value.add_(coefficient).mul_(fraction)
    # 2**(whole + 40) by its bits: exponent and nothing else.
    scale = whole.to(torch.int32).add_(127 + FRACTION_BITS).bitwise_left_shift_(23).view(torch.float32)
    return value.add_(1.0).mul_(scale).to(torch.int64)
