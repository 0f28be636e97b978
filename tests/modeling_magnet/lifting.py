"""Make some tokens likely, in a model or by a processor of `generate`."""

from transformers.generation.logits_process import LogitsProcessorList


def lift_logits(model, ids, amount=50.0):
    """Add an amount to the logits of tokens in all outputs of a model."""

    def lift(module, inputs, output):
        output = output.clone()
        output[..., ids] += amount
        return output

    model.lm_head.register_forward_hook(lift)


def lifting(ids, amount=200.0):
    """Return a processor that adds an amount to the scores of tokens, which a function may give anew at each step."""

    def process(input_ids, scores):
        scores = scores.clone()
        scores[:, ids() if callable(ids) else ids] += amount
        return scores

    return LogitsProcessorList([process])
