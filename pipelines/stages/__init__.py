"""The stages, in their order; reading this list is reading the toolkit.

1. `superpixels`: SLIC of every photo -> ``superpixels.h5``
2. `cams`: class activation maps on the frozen CLIP -> ``cams.h5``
3. `refine`: CLIP + DINO affinity, column mask, propagation, CRF -> ``refined.h5``, ``masks/*.png``
4. `evaluate`: scores against ground truth -> ``eval/*/report.json``

Around them: `text` (text banks), `show` (pictures), `doctor` (before a run), `status` (after one).
"""
