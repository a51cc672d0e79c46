"""Random search around trained weights: families of noise, the sweep, and what its scores say."""

from lacuna.search.analysis import held_out_records as held_out_records
from lacuna.search.analysis import sweep_records as sweep_records
from lacuna.search.candidates import candidate as candidate
from lacuna.search.candidates import rescore as rescore
from lacuna.search.evaluate import score as score
from lacuna.search.families import Family as Family
from lacuna.search.families import LeafFamily as LeafFamily
from lacuna.search.families import gaussian as gaussian
from lacuna.search.families import low_rank as low_rank
from lacuna.search.families import rademacher as rademacher
from lacuna.search.landscape import Landscape as Landscape
from lacuna.search.landscape import landscape as landscape
from lacuna.search.plan import SweepPlan as SweepPlan
from lacuna.search.plan import plan_sweep as plan_sweep
from lacuna.search.reporting import report_run as report_run
from lacuna.search.run import run_sweep as run_sweep
from lacuna.search.scaling import relative_scales as relative_scales
from lacuna.search.scaling import scaled as scaled
from lacuna.search.select import Candidate as Candidate
from lacuna.search.select import expected_best as expected_best
from lacuna.search.select import subset_sizes as subset_sizes
from lacuna.search.stopping import SweepStopped as SweepStopped
from lacuna.search.subspace import in_basis as in_basis
from lacuna.search.sweep import Sweep as Sweep
from lacuna.search.sweep import SweepResult as SweepResult
from lacuna.search.sweep import table_sha256 as table_sha256
