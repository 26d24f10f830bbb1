"""The bridge to the Adversarial Robustness Toolbox (ART), in both directions.

`estimator` makes a defended model an ART estimator, `attack` runs ART's evasion attacks as ours,
`offer` lends our attacks to an ART pipeline. Importing this package imports neither torch nor ART.
"""
