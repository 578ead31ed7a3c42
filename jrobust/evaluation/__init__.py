"""Evaluation suites: what is measured on a trained model, and the records they leave behind."""

from jrobust.evaluation.record import Estimate, Record
from jrobust.evaluation.subject import Subject
from jrobust.evaluation.suites import run_suites

__all__ = ["Estimate", "Record", "Subject", "run_suites"]
