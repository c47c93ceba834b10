"""From an annotated reference to prompts on a target, as pure tensor functions: no MONAI, no network.

In the order in which P²SAM uses them: :mod:`masks` brings a mask to the feature grid, :mod:`parts` clusters
the features below it (Eq. 1), :mod:`points` finds each part on the target (Eq. 2), :mod:`boxes` bounds a
mask, :mod:`prompt` is what a decoder is given, :mod:`retrieval` chooses among decoded candidates (Eq. 3).
"""
