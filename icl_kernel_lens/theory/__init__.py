"""The theory, computed: Bayesian prediction against kernel regression on hidden Markov worlds.

Han, Wang, Zhao, Ji, "Understanding Emergent In-Context Learning from a Kernel Regression Perspective" (TMLR
2025), section 2, in float64 and without a language model. One file an idea:

    hmm        hidden Markov models                     mixture    tasks merged into one, prompts, delimiter
    presets    worlds with known parameters             ginc       the generator of Xie et al. (2022)
    bayes      P(Y | prompt), posterior over tasks      operators  T_x
    kernel     K, kernel regression, its variants       theorem    Theorem 1 measured
    experiments  what the paper draws from it (results: experiment)
    study      all of that on one world             enumerate  all of it again, by listing every path
"""

from icl_kernel_lens.theory.bayes import (
    BayesPrediction,
    Concentration,
    TaskDivergences,
    bayesian_prediction,
    posterior_concentration,
    task_divergences,
    task_prediction,
)
from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.experiment import Experiment
from icl_kernel_lens.theory.experiments import (
    label_noise,
    output_format,
    representative,
    retrieve_similar,
    softmax_kernels,
    worlds_of_the_paper,
)
from icl_kernel_lens.theory.ginc import Ginc, ginc
from icl_kernel_lens.theory.hmm import HMM
from icl_kernel_lens.theory.kernel import (
    VARIANTS,
    OperatorKernel,
    PopulationRegression,
    Regression,
    Variant,
    VariantScore,
    VariantTable,
    compare_variants,
    fit_kernel,
    kernel_regression,
    operator_features,
    population_regression,
)
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.operators import Inputs, enumerate_inputs
from icl_kernel_lens.theory.presets import PRESETS, han2025, preset, random_world
from icl_kernel_lens.theory.study import Study, study
from icl_kernel_lens.theory.theorem import (
    LETTER,
    Rate,
    TheoremResult,
    TheoremTerms,
    measure_theorem,
    theorem_terms,
)

__all__ = [
    "HMM",
    "LETTER",
    "PRESETS",
    "VARIANTS",
    "BayesPrediction",
    "Concentration",
    "Experiment",
    "Ginc",
    "Inputs",
    "OperatorKernel",
    "PopulationRegression",
    "Prompts",
    "Rate",
    "Regression",
    "Study",
    "TaskDivergences",
    "TaskMixture",
    "TheoremResult",
    "TheoremTerms",
    "TheoryError",
    "Variant",
    "VariantScore",
    "VariantTable",
    "bayesian_prediction",
    "compare_variants",
    "enumerate_inputs",
    "fit_kernel",
    "ginc",
    "han2025",
    "kernel_regression",
    "label_noise",
    "measure_theorem",
    "operator_features",
    "output_format",
    "population_regression",
    "posterior_concentration",
    "preset",
    "random_world",
    "representative",
    "retrieve_similar",
    "softmax_kernels",
    "study",
    "task_divergences",
    "task_prediction",
    "theorem_terms",
    "worlds_of_the_paper",
]
