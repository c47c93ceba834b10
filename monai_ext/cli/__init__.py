"""The command ``monai-ext``: it composes the commands of this package and of ``python -m monai.bundle run``.

Every verb is a sequence of :class:`~monai_ext.cli.steps.Step`, each the call of a module that can be called by itself;
``--show`` prints them. Nothing here is imported by the rest of the package, and nothing here imports torch or MONAI
before a step runs.
"""
