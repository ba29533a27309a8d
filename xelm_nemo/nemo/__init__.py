"""XGLM and OPT in NeMo 2. Importing this registers their connectors with NeMo, and takes NeMo's 11 to 17 s."""

from xelm_nemo.nemo import connectors as connectors
