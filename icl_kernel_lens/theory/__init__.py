"""The theory, computed: Bayesian prediction against kernel regression on hidden Markov worlds.

Han, Wang, Zhao, Ji, "Understanding Emergent In-Context Learning from a Kernel Regression Perspective" (TMLR
2025), section 2, in float64 and without a language model. One file an idea:

    hmm          hidden Markov models               mixture      tasks merged into one, prompts, delimiter
    presets      worlds with known parameters, GINC's generator (Xie et al., 2022) too
    kernel       K, as features of the operators T_x
    bayes        P(Y | prompt), and how the posterior finds the task
    regression   kernel regression, with other operators, moments and readouts too
    theorem      Theorem 1 measured                 study        all of that on one world
    experiments  what the paper draws from it       experiment   what each of them leaves
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
from icl_kernel_lens.theory.experiments.attention_kernels import softmax_kernels
from icl_kernel_lens.theory.experiments.chosen_demos import representative, retrieve_similar
from icl_kernel_lens.theory.experiments.labels import label_noise, output_format
from icl_kernel_lens.theory.hmm import HMM
from icl_kernel_lens.theory.kernel import (
    VARIANTS,
    Inputs,
    OperatorKernel,
    Variant,
    enumerate_inputs,
    fit_kernel,
    operator_features,
)
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture, WorldInfo
from icl_kernel_lens.theory.presets import PRESETS, Ginc, draw_ginc, han2025, preset, random_world
from icl_kernel_lens.theory.regression import (
    PopulationRegression,
    Regression,
    VariantTable,
    compare_variants,
    kernel_regression,
    population_regression,
)
from icl_kernel_lens.theory.study import Study, run_study, worlds_of_the_paper
from icl_kernel_lens.theory.theorem import (
    LETTER,
    Rate,
    TheoremResult,
    TheoremSettings,
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
    "TheoremSettings",
    "TheoremTerms",
    "TheoryError",
    "Variant",
    "VariantTable",
    "WorldInfo",
    "bayesian_prediction",
    "compare_variants",
    "draw_ginc",
    "enumerate_inputs",
    "fit_kernel",
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
    "run_study",
    "softmax_kernels",
    "task_divergences",
    "task_prediction",
    "theorem_terms",
    "worlds_of_the_paper",
]
