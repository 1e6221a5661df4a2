"""The place of `save_pretrained` until 0.1; it is unetseg.save_pretrained now, and this module goes with 0.3."""

import warnings

from unetseg.inference.export import save_pretrained as save_pretrained

warnings.warn("unetseg.exporting.save_pretrained is unetseg.save_pretrained now", DeprecationWarning, stacklevel=2)
