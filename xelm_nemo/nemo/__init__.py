"""XGLM and OPT in NeMo 2: importing this registers their connectors, and takes as long as importing NeMo."""

from xelm_nemo.nemo import connectors as connectors
