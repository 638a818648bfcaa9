"""One run: its specification, its steps, its training loop and the model it keeps."""

from shiftproof.protocol import PROTOCOLS, Protocol
from shiftproof.training.averaging import CONVERGENCE, SWADS
from shiftproof.training.build import build_algorithm, build_steps
from shiftproof.training.checkpoint import read_saved
from shiftproof.training.combinations import check_combination, check_inputs_taken, check_start
from shiftproof.training.combining import MeanPrediction, Member, combine, combined_spec
from shiftproof.training.device import check_device, check_device_name
from shiftproof.training.evaluation import evaluate
from shiftproof.training.export import EXPORT_FORMATS, ExportError, export_format, export_model
from shiftproof.training.first_pass import FIRST_PASS
from shiftproof.training.inputs import EVALUATION_BATCH, GPU_EVALUATION_BATCH, Inputs
from shiftproof.training.kept_predictions import (
    PREDICTIONS_BYTES,
    PREDICTIONS_FILE,
    KeptPredictions,
    read_predictions,
)
from shiftproof.training.loop import Callback, Loop, NonFiniteLossError
from shiftproof.training.predict import Prediction, predict_pictures, predict_rows, read_rows
from shiftproof.training.prediction_files import (
    PREDICTION_FORMATS,
    as_row,
    check_prediction_file,
    csv_lines,
    write_predictions,
)
from shiftproof.training.ranks import Ranks
from shiftproof.training.result import RESULT_FILE, RESULT_REMEDY, read_result, state_digest
from shiftproof.training.run import (
    CHECKPOINT_FILE,
    ERROR_FILE,
    METRICS_FILE,
    SPEC_FILE,
    RunPlace,
    check_inputs,
    reproducible,
    train,
    train_together,
)
from shiftproof.training.saved_model import WEIGHTS_FILE, SavedModel, load, read_description
from shiftproof.training.scores import evaluate_folder, evaluate_labelled, evaluate_table
from shiftproof.training.spec import RunSpec, results_version
from shiftproof.training.step import StepBuilder

__all__ = [
    "CHECKPOINT_FILE",
    "CONVERGENCE",
    "ERROR_FILE",
    "EVALUATION_BATCH",
    "EXPORT_FORMATS",
    "FIRST_PASS",
    "GPU_EVALUATION_BATCH",
    "METRICS_FILE",
    "PREDICTIONS_BYTES",
    "PREDICTIONS_FILE",
    "PREDICTION_FORMATS",
    "PROTOCOLS",
    "RESULT_FILE",
    "RESULT_REMEDY",
    "SPEC_FILE",
    "SWADS",
    "WEIGHTS_FILE",
    "Callback",
    "ExportError",
    "Inputs",
    "KeptPredictions",
    "Loop",
    "MeanPrediction",
    "Member",
    "NonFiniteLossError",
    "Prediction",
    "Protocol",
    "Ranks",
    "RunPlace",
    "RunSpec",
    "SavedModel",
    "StepBuilder",
    "as_row",
    "build_algorithm",
    "build_steps",
    "check_combination",
    "check_device",
    "check_device_name",
    "check_inputs",
    "check_inputs_taken",
    "check_prediction_file",
    "check_start",
    "combine",
    "combined_spec",
    "csv_lines",
    "evaluate",
    "evaluate_folder",
    "evaluate_labelled",
    "evaluate_table",
    "export_format",
    "export_model",
    "load",
    "predict_pictures",
    "predict_rows",
    "read_description",
    "read_predictions",
    "read_result",
    "read_rows",
    "read_saved",
    "reproducible",
    "results_version",
    "state_digest",
    "train",
    "train_together",
    "write_predictions",
]
