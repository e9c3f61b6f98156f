"""The loop: trainer, batch sources, student, knobs, checkpoints. Needs torch and transformers (`limbeck[train]`)."""

from limbeck.steering import Steering
from limbeck.training.evaluate import evaluate, teacher_figures
from limbeck.training.export import export_student
from limbeck.training.job import BatchSource, EventSink, TrainJob, TrainResult
from limbeck.training.sources import CachedSource, NoSource, OnlineSource
from limbeck.training.student import Student, build_student
from limbeck.training.train import train

__all__ = [
    "BatchSource",
    "CachedSource",
    "EventSink",
    "NoSource",
    "OnlineSource",
    "Steering",
    "Student",
    "TrainJob",
    "TrainResult",
    "build_student",
    "evaluate",
    "export_student",
    "teacher_figures",
    "train",
]
