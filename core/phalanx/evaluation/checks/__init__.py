"""Checks that say whether a robust accuracy means what it seems to.

Each is a pure function of tensors and callables that gives a `phalanx.evaluation.findings.Check`.
None attacks: who evaluates gives outcomes per image, paths seen by observers, and functions to
ask. `verdict` makes of them what is said of a defense (masking) and of each number (verdict).

============================ ==== ========================================= =====================
id                           tier what it asks                              source
============================ ==== ========================================= =====================
``logits``                   core do outputs look like probabilities        AutoAttack
``stochastic``               core do answers vary undeclared                AutoAttack, ours
``batch_dependence``         core do batch-mates change answers             ours
``dynamic``                  core does a forward compute gradients          AutoAttack
``grad_bad:loss``            core which images have no usable gradient      ART, AutoAttack, IOAF
``grad_fd``                  core is autograd the slope of the function     ours
``grad_deployed``            core is the estimator's gradient autograd's    ours
``black_box``                core what do Square and hard labels add        AutoAttack, Carlini 8
``transfer``                 core what do other models' examples add        Carlini 10, ours
``unbounded``                core what withstands a ball as large as all    Athalye, IOAF
``converged_steps``          core what do twice the steps add               Carlini 4
``budget``                   core did examples keep to ball and box         AutoAttack
``eot_k``                    core what do more draws add, a frozen one lose Carlini 11
``ensemble_reweight``        core what does weighing members anew add       MORA
``adaptive``                 core is the adaptive attack the strongest      Tramèr, Carlini 8
``one_step``                 core what does FGSM add                        Athalye
``silent``                   core were adversarial iterates not returned    IOAF
``incomplete``               core does the loss still move at the end       IOAF
``unstable``                 core does noise change the margin              IOAF
``loss_rank``                core is a higher loss nearer to an error       Tramèr (theme 4)
``ensemble_dominance``       core has one member all of the gradient        MORA
``noise_gain``               full what do random points add                 Athalye, Carlini 17
``monotone``                 full does a larger radius ever have less       Carlini 5
``chance``                   full is a grey image still recognised          Carlini 6
``losses``                   full what do other losses add                  Tramèr (theme 5)
``converged_restarts``       full what do twice the restarts add            Carlini 4
``binarization``             full are planted examples found                Zimmermann
============================ ==== ========================================= =====================

Sources: Athalye et al. (ICML 2018, arXiv 1802.00420); Carlini et al. (2019, arXiv 1902.06705);
AutoAttack: Croce and Hein (ICML 2020, arXiv 2003.01690); Tramèr et al. (NeurIPS 2020, arXiv
2002.08347); IOAF: Pintor et al. (NeurIPS 2022, arXiv 2106.09947); MORA: Yu et al. (NeurIPS 2022,
arXiv 2211.08008); Zimmermann et al. (NeurIPS 2022, arXiv 2206.13991).
"""

from phalanx.evaluation.checks.binarization import (
    BinarizationConfig,
    Binarized,
    binarization,
    binarize,
)
from phalanx.evaluation.checks.gradients import (
    ensemble_dominance,
    grad_bad,
    grad_deployed,
    grad_fd,
    unstable,
)
from phalanx.evaluation.checks.model import batch_dependence, dynamic, logits, stochastic
from phalanx.evaluation.checks.outcomes import (
    adaptive,
    all_right,
    black_box,
    chance,
    converged_restarts,
    converged_steps,
    ensemble_reweight,
    eot_k,
    losses,
    monotone,
    noise_gain,
    one_step,
    transfer,
    unbounded,
)
from phalanx.evaluation.checks.paths import (
    Path,
    PathObserver,
    incomplete,
    joined,
    loss_rank,
    silent,
)
from phalanx.evaluation.checks.rules import budget, excess
from phalanx.evaluation.checks.table import TABLE, Entry, not_applicable, not_run
from phalanx.evaluation.checks.thresholds import DEFAULTS, Above, Below, Shares, Thresholds
from phalanx.evaluation.checks.verdict import (
    FOR_ENSEMBLES,
    FOR_STOCHASTIC,
    FREE,
    REQUIRED,
    AttackFacts,
    masking_of,
    sentence,
    severest,
    verdicts,
    with_touches,
)

__all__ = [
    "DEFAULTS",
    "FOR_ENSEMBLES",
    "FOR_STOCHASTIC",
    "FREE",
    "REQUIRED",
    "TABLE",
    "Above",
    "AttackFacts",
    "Below",
    "BinarizationConfig",
    "Binarized",
    "Entry",
    "Path",
    "PathObserver",
    "Shares",
    "Thresholds",
    "adaptive",
    "all_right",
    "batch_dependence",
    "binarization",
    "binarize",
    "black_box",
    "budget",
    "chance",
    "converged_restarts",
    "converged_steps",
    "dynamic",
    "ensemble_dominance",
    "ensemble_reweight",
    "eot_k",
    "excess",
    "grad_bad",
    "grad_deployed",
    "grad_fd",
    "incomplete",
    "joined",
    "logits",
    "loss_rank",
    "losses",
    "masking_of",
    "monotone",
    "noise_gain",
    "not_applicable",
    "not_run",
    "one_step",
    "sentence",
    "severest",
    "silent",
    "stochastic",
    "transfer",
    "unbounded",
    "unstable",
    "verdicts",
    "with_touches",
]
