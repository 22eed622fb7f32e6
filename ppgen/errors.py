"""Every error and warning that ppgen raises on purpose.

Each class also inherits the built-in exception that a caller would expect, so
``except ValueError`` keeps working. A message names the argument, says what was
expected and what came, and ends with what to do.
"""

from __future__ import annotations


class PpgenError(Exception):
    """Base of all errors raised by ppgen."""


class DataError(PpgenError, ValueError):
    """Data that cannot be used: NaN, empty, out of support, unreadable."""


class ShapeError(DataError):
    """A tensor whose shape does not fit what the model or function expects."""


class ConfigError(PpgenError, ValueError):
    """An argument, or a combination of arguments, that makes no sense."""


class CapabilityError(PpgenError, TypeError):
    """A model was asked for something that its family cannot give."""


class DeviceError(PpgenError, RuntimeError):
    """A device was asked for that this machine does not have."""


class CompilationError(PpgenError, RuntimeError):
    """A program could not be compiled: no compiler, an operation that has no compiled form, ..."""


class TrainingError(PpgenError, RuntimeError):
    """Training could not go on. The model holds its last good state."""


class SamplingError(PpgenError, RuntimeError):
    """A sampler could not start or could not go on."""


class CheckpointError(PpgenError, RuntimeError):
    """A checkpoint that is damaged, foreign, or newer than this version."""


class DownloadError(PpgenError, RuntimeError):
    """A download failed, or what came is not what was promised."""


class PpgenWarning(UserWarning):
    """Base of all warnings issued by ppgen."""


class DataWarning(PpgenWarning):
    """Data that can be used but will likely disappoint (constant columns, ...)."""


class TrainingWarning(PpgenWarning):
    """Training went on, but something is worth a look."""


class SamplingWarning(PpgenWarning):
    """Sampling goes on, but slower than it could, or its draws deserve a look."""


class CheckpointWarning(PpgenWarning):
    """A checkpoint was unusable and an older one was taken."""
