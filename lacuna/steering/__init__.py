"""From weights to activations and back: contrast vectors, the shift of a step, steering, and what both are worth."""

from lacuna.steering.intervene import Answers as Answers
from lacuna.steering.intervene import Arms as Arms
from lacuna.steering.intervene import TextCost as TextCost
from lacuna.steering.intervene import grid as grid
from lacuna.steering.intervene import position_masks as position_masks
from lacuna.steering.intervene import scaled as scaled
from lacuna.steering.intervene import steered_answers as steered_answers
from lacuna.steering.intervene import steered_text as steered_text
from lacuna.steering.intervene import stepped_answers as stepped_answers
from lacuna.steering.intervene import stepped_text as stepped_text
from lacuna.steering.matching import Matched as Matched
from lacuna.steering.matching import MatchStatus as MatchStatus
from lacuna.steering.matching import match_kl as match_kl
from lacuna.steering.outcomes import Interval as Interval
from lacuna.steering.outcomes import accuracy as accuracy
from lacuna.steering.outcomes import auroc as auroc
from lacuna.steering.outcomes import balanced_accuracy as balanced_accuracy
from lacuna.steering.outcomes import balanced_threshold as balanced_threshold
from lacuna.steering.outcomes import mcnemar as mcnemar
from lacuna.steering.outcomes import paired_bootstrap as paired_bootstrap
from lacuna.steering.outcomes import signed_log_odds as signed_log_odds
