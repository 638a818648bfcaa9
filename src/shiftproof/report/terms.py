"""What the terms of a table mean, in plain words, and what a selection rule does."""

MEANINGS = {
    "dataset": "the images and their domains",
    "protocol": "the rules of splitting, training and scoring",
    "transductive": "which algorithms see images of the unseen domain as they predict, without labels, and how many",
    "published start": "the weights that published results under this protocol started from",
    "trials": "times that everything was repeated, each with its own split of the images, start and batches",
    "settings per method": "hyperparameter settings that every method chose from",
    "tuning": "what a setting was chosen for; where this is not given, for every target and trial",
    "sources": "what a run was trained on; where this is not given, on all domains but the target",
    "search": "the distributions that settings are drawn from; setting 0 is a method's defaults",
    "steps": "updates of the weights in a run",
    "steps between evaluations": "how often a run is scored, and a step can be selected",
    "images per domain and step": "batch size, per source domain",
    "model": "the network",
    "precision": "of the forward passes",
    "compiled": "what was turned into code of its own, which computes the same to rounding",
    "device": "where the runs were trained",
    "kind": "of a folder's images: photographs are cropped, flipped and changed in colour in training",
    "image size": "side of the images, in pixels",
    "weights": "the file of weights that training started from",
    "normalisation": "mean and standard deviation of pixels from 0 to 1 that the weights were trained with; where "
    "this is not given, those that go with the model's name",
    "batch norm": "whether batch norms keep the statistics of the weights file",
    "classifier start": "its weights before training, where the others come from a file",
    "split": "how the held-out images of a domain are chosen",
    "accumulate": "parts that a batch is split into for its gradient",
    "clip norm": "largest norm of the gradient",
    "averaging": "of the weights over the steps; the averaged weights are scored",
    "fixed": "hyperparameters fixed by hand, the same for all methods",
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
