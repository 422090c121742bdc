"""What an attack on a classifier maximises."""

import math
from collections.abc import Callable

from torch import Tensor, nn


def cross_entropy(logits: Callable[[Tensor], Tensor], labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The classifier attack's usual objective, in nats: -log softmax of the true label; labels (B,) int64."""
    return lambda x: nn.functional.cross_entropy(logits(x), labels, reduction="none")


def margin(
    logits: Callable[[Tensor], Tensor], labels: Tensor, targets: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """The best wrong logit minus the true one (Carlini and Wagner, 2016): positive exactly where misclassified.

    Unlike the cross-entropy, its gradient does not vanish where the classifier is sure of itself. targets (B,): the
    logit of these classes instead of the best wrong one's, which may change from step to step and lead to none.
    """

    def objective(x: Tensor) -> Tensor:
        scores, true = logits(x), labels[:, None]
        if targets is None:
            wrong = scores.scatter(-1, true, -math.inf).amax(-1)
        else:
            wrong = scores.gather(-1, targets[:, None])[:, 0]
        return wrong - scores.gather(-1, true)[:, 0]

    return objective
