"""MONAI Label: the app and studies of a data list, a server of them, a demo.

* studies and app of a data list           -> :mod:`~monai_ext.label.layout`
* the server as a process, and requests    -> :mod:`~monai_ext.label.server`
* a server on a phantom patient, compared  -> :mod:`~monai_ext.label.demo`
"""
