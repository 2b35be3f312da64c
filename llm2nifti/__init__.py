"""Task fMRI for language models.

llm2nifti shows block-designed prompts to a Hugging Face transformer, writes what its layers did as
4D NIfTI runs in a BIDS dataset, and hands them to nilearn. The submodules are the API::

    from llm2nifti import bids, glm, models, networks, paradigm, scanner

Nothing is imported here, so that ``import llm2nifti`` and ``llm2nifti --help`` stay fast.
"""

__version__ = "0.1.0"
