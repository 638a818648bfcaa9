"""What the terms of a table mean, in plain words."""

MEANINGS = {
    "dataset": "the images and their domains",
    "protocol": "the rules of splitting, training and scoring",
    "trials": "times that everything was repeated, each with its own split of the images, start and batches",
    "settings per method": "hyperparameter settings that every method chose from, per target and trial",
    "search": "the distributions that settings are drawn from; setting 0 is a method's defaults",
    "steps": "updates of the weights in a run",
    "images per domain and step": "batch size, per source domain",
    "model": "the network",
    "precision": "of the forward passes",
    "device": "where the runs were trained",
    "image size": "side of the images, in pixels",
    "weights": "the file of weights that training started from",
    "batch norm": "whether batch norms keep the statistics of the weights file",
    "classifier start": "its weights before training, where the others come from a file",
    "split": "how the held-out images of a domain are chosen",
    "accumulate": "parts that a batch is split into for its gradient",
    "clip norm": "largest norm of the gradient",
    "fixed": "hyperparameters fixed by hand, the same for all methods",
    "selection": "the rule that chose every run's step and setting",
    "runs finished": "of the runs that the study plans",
}
