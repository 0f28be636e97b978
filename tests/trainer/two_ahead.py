"""A fourth objective as a user would add it: multi-token prediction of the token after the next.

Import this module before the training arguments are made, and name the objective in a phase: `"800: msg=1 mtp=0.5"`.
"""

import torch

from trainer.objectives import OBJECTIVES, Objective


def two_ahead(batch):
    """Label each position with what the next position predicts within spans; -100 elsewhere."""
    labels = torch.full_like(batch["msg_labels"], -100)
    labels[:, :-1] = batch["msg_labels"][:, 1:]
    return labels


OBJECTIVES["mtp"] = Objective(labels=two_ahead)
