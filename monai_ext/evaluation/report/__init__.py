"""A report that a person reads: one self-contained HTML page from the output folders of evaluations.

:mod:`~monai_ext.evaluation.report.sources` reads the folders, :mod:`~monai_ext.evaluation.report.page` arranges what
they say, :mod:`~monai_ext.evaluation.report.figures` draws; ``template.html`` and ``style.css`` hold the rest.
"""
