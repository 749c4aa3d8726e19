"""Data by name: two splits of labelled images, resized, standardised and held in memory."""

from __future__ import annotations

from convexlab.datasets.dataset import Batches, Dataset
from convexlab.datasets.loading import dataset_names, load_dataset
from convexlab.datasets.subset import stratified_indices

__all__ = ["Batches", "Dataset", "dataset_names", "load_dataset", "stratified_indices"]
