"""Explanations of the terms of a table and of the selection rules, for readers of a report."""

from dataclasses import fields

from shiftproof.protocol import RULES
from shiftproof.studies import Study, info_of

MEANINGS = {
    **{term.label: term.meaning for field in fields(Study) if (term := info_of(field).term) is not None},
    "encoder": "the network whose features the inputs are, and what it was given; it is not trained",
    "transductive": "algorithms that use unlabelled images of the unseen domain to predict, and how many images",
    "published start": "the weights that published results under this protocol started from",
    "images per domain and step": "batch size per source domain",
    "batch norm": "whether batch norms keep the statistics of the weights file",
    "classifier start": "initial weights of the classifier, when all other weights come from a file",
    "selection": "the rule that chose every run's step and setting",
    "results version": "version of the code that trained the runs, shown if today's code gives other numbers",
    "runs finished": "number of the planned runs that finished",
}

RULE_MEANINGS = {
    "training_domain": "Some images of every training domain are held out. The step at which a run is scored and the "
    "setting of a method are those with the best score on these images, the earliest step on a tie. The score on the "
    "unseen domain is not used to choose anything.",
    "leave_one_domain_out": "Step and setting are those with the best mean score over the training domains, each "
    "scored in a run that left out that domain and the target. The score on the unseen domain is not used to choose "
    "anything.",
    "oracle": "The setting, and under the protocol swad the step too, is the one with the best score on held-out "
    "images of the unseen domain itself, which nobody has in practice.",
    "last": "The last step. There is no validation, so the first of several settings that finished is taken.",
}


def rule_meaning(rule: str) -> str:
    """Return what a selection rule does, for readers of a report."""
    if rule in RULE_MEANINGS:
        return RULE_MEANINGS[rule]
    return (
        RULES.summary(rule) if rule in RULES else "A rule of a plug-in that was not imported when this page was made."
    )
