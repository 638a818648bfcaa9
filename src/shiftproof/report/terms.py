"""What the terms of a table mean, in plain words, and what a selection rule does."""

from dataclasses import fields

from shiftproof.studies import Study, info_of

MEANINGS = {
    **{term.label: term.meaning for field in fields(Study) if (term := info_of(field).term) is not None},
    "transductive": "which algorithms see images of the unseen domain as they predict, without labels, and how many",
    "published start": "the weights that published results under this protocol started from",
    "images per domain and step": "batch size, per source domain",
    "batch norm": "whether batch norms keep the statistics of the weights file",
    "classifier start": "its weights before training, where the others come from a file",
    "selection": "the rule that chose every run's step and setting",
    "results version": "of the code that trained the runs, where today's gives other numbers",
    "runs finished": "of the runs that the study plans",
}

RULE_MEANINGS = {
    "training_domain": "Of every training domain some images are held out. The step at which a run is scored, and the "
    "setting that a method is given, are those with the highest accuracy on these images, the earliest step on a tie. "
    "Nothing is chosen by accuracy on the unseen domain.",
    "leave_one_domain_out": "Step and setting are those with the highest mean accuracy on one training domain after "
    "the other, each in a run that left out that domain and the target. Nothing is chosen by accuracy on the unseen "
    "domain.",
    "oracle": "The setting, and under the protocol swad the step too, is the one with the highest accuracy on held-out "
    "images of the unseen domain itself. In practice nobody has them.",
    "last": "The last step. Nothing is validated, so among several settings the first that finished is taken.",
}
