"""What an attack on a classifier maximises."""

import math
from collections.abc import Callable

from torch import Tensor, nn


def cross_entropy(logits: Callable[[Tensor], Tensor], labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The classifier attack's usual objective, in nats: -log softmax of the true label; labels (B,) int64."""
    return lambda x: nn.functional.cross_entropy(logits(x), labels, reduction="none")


def margin(logits: Callable[[Tensor], Tensor], labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The best wrong logit minus the true one (Carlini and Wagner, 2016): positive exactly where misclassified.

    Unlike the cross-entropy, its gradient does not vanish where the classifier is sure of itself.
    """

    def objective(x: Tensor) -> Tensor:
        scores = logits(x)
        true = labels[:, None]
        return scores.scatter(-1, true, -math.inf).amax(-1) - scores.gather(-1, true)[:, 0]

    return objective
