"""Changes one constant or comparison of the library at a time and sees whether the tests notice.

    python tools/mutants.py [PATTERN]      # all of `MUTANTS`, or those whose name or tests contain PATTERN
    python tools/mutants.py --table        # the table in CONTRIBUTING.md

For each mutant `ltpa/` is copied to a temporary folder, changed there, and the tests named beside it are run on the
copy: killed, or SURVIVED. The exit code is 1 if one survives or cannot be made. First, all the tests are run once on
a copy that is not changed: a test that fails anyway kills nothing.
"""
import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300                      # seconds; tests that hang for so long have noticed something
FAILED, ELSEWHERE = 1, 99           # exit codes: of pytest where a test failed; ours where they ran on another ltpa
# Loaded once and inherited by all processes; nothing of ltpa, which each must import anew.
PRELOAD = ['torch', 'torchvision', 'sklearn.svm', 'sklearn.model_selection', 'scipy.ndimage', 'matplotlib.pyplot',
           'captum.attr', 'captum.robust', 'captum.metrics', 'pytest']

# Tests that several mutants share.
TABLE = 'test_models.py::test_convolutions_norms_and_dropout_are_those_of_the_authors_table'
HEADS = 'test_models.py::test_heads_and_projections_are_those_of_the_authors'
START = 'test_models.py::test_convolutions_start_with_variance_2_over_kernel_and_outputs'
BUNDLED = 'test_models.py::test_bundled_networks_are_what_the_command_would_train'
BOXES = 'test_faithfulness.py::test_a_box_counts_at_each_iou_that_it_reaches'
PGD = 'test_adversarial.py::test_pgd_can_cross_its_box'
SQUARE = 'test_adversarial.py::test_squares_shrink_as_published'
PLACES = 'test_adversarial.py::test_square_begins_with_fair_stripes_and_reaches_every_place'
SIGNATURES = 'test_saliency.py::test_signatures_agree'
GAP = 'test_query.py::test_even_squares_turned_by_20_degrees_keep_to_their_halves'
THRESHOLDS = 'test_segmentation.py::test_a_fixed_threshold_may_lie_anywhere_from_0_to_98_hundredths'
SCENES = 'test_data.py::test_scenes_are_spread_evenly_over_their_ranges'
ZOOM = 'test_data.py::test_zooms_show_two_thirds_two_fifths_and_a_quarter_of_the_short_side'

MUTANTS = [  # (name, old text, new text, tests): the old text stands once in all of ltpa/*.py; lists change together
    ("Dropout after the first convolution .3 → .4", "(64, .3, False)", "(64, .4, False)", TABLE),
    ("Dropout after the third .4 → .3", "(128, .4, False)", "(128, .3, False)", TABLE),
    ("Dropout at tap 1", "(256, .4, False), (256, 0, True)", "(256, .4, False), (256, .4, True)", TABLE),
    ("eps of the trunk 1e-3 → 1e-5", "nn.BatchNorm2d(out, eps=1e-3)", "nn.BatchNorm2d(out, eps=1e-5)", TABLE),
    ("Dropout before FC-1 .5 → .4",
     "*pool(1))\n        self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
     "                                nn.Dropout(.5",
     "*pool(1))\n        self.fc = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
     "                                nn.Dropout(.4", TABLE),
    ("Dropout after convolution 14 .4 → .5", "conv14, conv15 = (block(channels, channels, .4 * dropout) for _ in range(2))",
     "conv14, conv15 = (block(channels, channels, k * dropout) for k in (.5, .4))", TABLE),
    ("Dropout after convolution 15 .4 → 0", "conv14, conv15 = (block(channels, channels, .4 * dropout) for _ in range(2))",
     "conv14, conv15 = (block(channels, channels, k * dropout) for k in (.4, 0))", TABLE),
    ("Dropout of the plain VGG .5 → .4", "nn.Dropout(.5 * dropout), nn.Linear(C, C)",
     "nn.Dropout(.4 * dropout), nn.Linear(C, C)", TABLE),
    ("eps of the head 1e-5 → 1e-3", "nn.Sequential(nn.BatchNorm1d(c), nn.ReLU()",
     "nn.Sequential(nn.BatchNorm1d(c, eps=1e-3), nn.ReLU()", HEADS),
    ("Dropout of the head .5 → .3", "share:float=.5,", "share:float=.3,", HEADS),
    ("Dropout of ResNets' head .3 → .5", "head=head, share=.3)", "head=head, share=.5)", HEADS),
    ("Dropout of the ResNet control .3 → .5", "[C], num_classes, dropout=dropout, share=.3)",
     "[C], num_classes, dropout=dropout, share=.5)", HEADS),
    ("Dropout of VGG's projection .5 → 0", "temperature, .5 * dropout, project, glob, gather,",
     "temperature, 0 * dropout, project, glob, gather,", HEADS),
    ("Dropout of ResNets' projection .5 → 0", "temperature, .5 * dropout, project, glob)",
     "temperature, 0 * dropout, project, glob)", HEADS),
    ("initialization fan_out → fan_in", "mode='fan_out'", "mode='fan_in'", START),
    ("these together: Dropout, eps, initialization",
     ["(64, .3, False)", "nn.BatchNorm2d(out, eps=1e-3)", "nn.Sequential(nn.BatchNorm1d(c), nn.ReLU()", "share:float=.5,",
      "mode='fan_out'"],
     ["(64, .4, False)", "nn.BatchNorm2d(out, eps=1e-5)", "nn.Sequential(nn.BatchNorm1d(c, eps=1e-3), nn.ReLU()",
      "share:float=.3,", "mode='fan_in'"], f'{TABLE} {HEADS} {START}'),
    ("width of the small networks 1/4 → 1/3", "vgg=dict(width=1/4, ", "vgg=dict(width=1/3, ", BUNDLED),
    ("weight decay of 'fast' .05 → .5", "lr=.008, weight_decay=.05)", "lr=.008, weight_decay=.5)", BUNDLED),
    ("batches of 'fast' 64 → 32", "Recipe('fast', epochs=6, batch_size=64", "Recipe('fast', epochs=6, batch_size=32",
     BUNDLED),
    ("Dropout of the projection .5 → 0", "temperature: float = 1., dropout: float = .5",
     "temperature: float = 1., dropout: float = 0.", "test_attention.py::test_projection_of_g_is_that_of_the_authors"),
    ("deviation of u .01 → .001", "std=.01)", "std=.001)",
     "test_attention.py::test_maps_of_pc_are_nearly_uniform_to_start_from"),
    ("two weights of V exchanged", "[.615, -.51499, -.10001]", "[.615, -.10001, -.51499]",
     "test_fidelity.py::test_colors_are_those_of_television"),
    ("surroundings 1.75 → 1.7", "1.75**2", "1.7**2", "test_fidelity.py::test_local_contrast_against_plain_loops"),
    ("largest → mean, level 1 of 80 pixels", "F.max_pool2d(taps[0], 5)", "F.avg_pool2d(taps[0], 5)",
     "test_fidelity.py::test_birds_first_level_is_pooled_by_5_and_doubled"),
    ("stairs of ResNets 160 → 150", "(120, .2), (160, .2)", "(120, .2), (150, .2)", "test_fidelity.py::test_stairs"),
    ("half a cosine → a line", "(1 + math.cos(math.pi * (t - self.warmup) / (1 - self.warmup))) / 2)",
     "1 - (t - self.warmup) / (1 - self.warmup))",
     "test_training.py::test_one_cycle_is_a_line_up_and_half_a_cosine_down"),
    ("warm-up .25 → .3", "warmup: float = .25", "warmup: float = .3",
     "test_training.py::test_fast_climbs_for_a_quarter"),
    ("rate of 'fast' .008 → .004", "optimizer='muon', lr=.008", "optimizer='muon', lr=.004",
     "test_training.py::test_fast_is_the_best_of_the_recipes_that_were_compared"),
    ("Muon's rate as in the original", "adjust_lr_fn='match_rms_adamw'", "adjust_lr_fn='original'",
     "test_training.py::test_muon_sees_a_convolution_as_a_matrix"),
    ("tolerance of ties 1e-5 → 1e-3", "(1 - 1e-5)", "(1 - 1e-3)",
     "test_training.py::test_only_what_rounding_parts_is_a_tie"),
    ("temperature of dp 8 → 4", "COOL = dict(temperature=8.)", "COOL = dict(temperature=4.)",
     "test_recipes.py::test_dp_is_as_cool_as_was_best_but_in_the_papers_size"),
    ("a training costs 3 passes forward → 2", "total = 3 * cost", "total = 2 * cost", "test_recipes.py::test_costs"),
    ("variance of all processes not unbiased", "var * (n / (n - 1))", "var",
     "test_distributed.py::test_synchronized_batch_norm_of_one_process"),
    ("IoU .3, .5, .7 → .3, .5, .5", "np.array([.3, .5, .7])", "np.array([.3, .5, .5])", BOXES),
    ("IoU of at least → above", "best[:, :, None] >= np", "best[:, :, None] > np", BOXES),
    ("box of zeros", "_boxes(m > t / thresholds)", "_boxes(m >= t / thresholds)",
     "test_faithfulness.py::test_a_map_of_zeros_marks_no_box_though_the_object_is_everywhere"),
    ("half covered: at least → above", "covered(masks, m.shape[1:]) >= .5", "covered(masks, m.shape[1:]) > .5",
     "test_faithfulness.py::test_a_cell_that_is_half_covered_is_of_the_object"),
    ("deletion and insertion < → <=", "place < k * P / steps", "place <= k * P / steps",
     "test_faithfulness.py::test_each_step_replaces_its_share_of_the_pixels_and_no_pixel_more"),
    ("area over one step more", "dx=1 / (curves.shape[1] - 1)", "dx=1 / curves.shape[1]",
     "test_faithfulness.py::test_areas_of_a_plateau_and_of_a_slope"),
    ("width of the centre", "(-(r[:, None]**2 + c**2) / 2)", "(-(r[:, None]**2 + c**2) / 3)",
     "test_faithfulness.py::test_center_is_a_gaussian_a_quarter_of_the_side_wide"),
    ("Sobel → Prewitt", "[[1., 2, 1], [0, 0, 0], [-1, -2, -1]]", "[[1., 1, 1], [0, 0, 0], [-1, -1, -1]]",
     "test_faithfulness.py::test_edges_are_scipys"),
    ("blur 1/8 → 1/4", "sd = [n / 8 for n", "sd = [n / 4 for n",
     "test_faithfulness.py::test_blur_is_scipys_gaussian_an_eighth_of_the_side_wide"),
    ("radius of sensitivity .02 → .03", "radius: float = .02,", "radius: float = .03,",
     "test_faithfulness.py::test_sensitivity_is_to_changes_of_at_most_two_hundredths"),
    ("ends of the interval .025 → .05", "[.025, .975]", "[.05, .95]",
     "test_faithfulness.py::test_bootstrap_of_a_mean_is_as_wide_as_its_standard_error"),
    ("PGD's steps 2.5 → 1.5", "length = 2.5 * eps", "length = 1.5 * eps", PGD),
    ("PGD's starts not random", "random_start=True", "random_start=False", PGD),
    ("Square's schedule .005 → .05", "SHRINK = .001, .005", "SHRINK = .001, .05", SQUARE),
    ("Square's first area .8 → .5", "area = .8 / 2**", "area = .5 / 2**", SQUARE),
    ("Square's colours .5 → .7", "generator=rng) < .5).to(x.device)", "generator=rng) < .7).to(x.device)", PLACES),
    ("Square's last place", "n - side + 1, (B, 1)", "max(1, n - side), (B, 1)", PLACES),
    ("noise: worst → mildest", "torch.where((now > most)[:", "torch.where((now < most)[:",
     "test_adversarial.py::test_noise_keeps_the_worst_draw"),
    ("gradient of 0 moves", "torch.where(way < 0, low, x)", "torch.where(way <= 0, low, x)",
     "test_adversarial.py::test_square_needs_no_gradient"),
    ("sizes of the attack", "(0, 1, 2, 4, 8, 16, 32)", "(0, 1, 2, 4, 8, 15, 32)",
     "test_adversarial.py::test_sizes_of_the_paper"),
    ("noise of SmoothGrad .1 → .2", "size, *, samples: int = 16, sd: float = .1, seed: int = 0):\n    \"\"\"", "size, *, samples: int = 16, sd: float = .2, seed: int = 0):\n    \"\"\"", SIGNATURES),
    ("stride of occlusion 4 → 8", "def occlusion(logits, x, target, size, *, window: int = 8, stride: int = 4",
     "def occlusion(logits, x, target, size, *, window: int = 8, stride: int = 8", SIGNATURES),
    ("weights of integrated gradients doubled", "(places + 1) / 2, weights / 2", "(places + 1) / 2, weights",
     "test_saliency.py::test_captum_is_called_as_its_manual_says"),
    ("LayerCAM's gradients below 0 are kept", "(slope.relu() * l).sum(1", "(slope * l).sum(1",
     "test_saliency.py::test_layer_cam_is_that_of_torchcam"),
    ("largest channel without sign → with it", "max=lambda a: a.abs().amax(1)", "max=lambda a: a.amax(1)",
     "test_saliency.py::test_channels"),
    ("share of cells 1/16 → 1/8", "share: float = 1/16,", "share: float = 1/8,",
     "test_query.py::test_softened_maps_have_a_sixteenth_of_their_cells_unless_asked_otherwise"),
    ("gap between two objects 1.29 → 1.2", "near, far = 1.29 *", "near, far = 1.2 *", GAP),
    ("gap between two objects 1.29 → 1.5", "near, far = 1.29 *", "near, far = 1.5 *", GAP),
    ("two objects of up to 25.6 → 28 pixels", "25.6 / size", "28 / size", GAP),
    ("best level counted from 0", "hits.index(max(hits)) + 1", "hits.index(max(hits))",
     "test_query.py::test_best_level_is_the_one_whose_record_points_best"),
    ("thresholds up to .78", "(k / 50 for k in range(50))", "(k / 50 for k in range(40))", THRESHOLDS),
    ("thresholds from .02", "(k / 50 for k in range(50))", "(k / 50 for k in range(1, 50))", THRESHOLDS),
    ("above a threshold → at least", "return maps > t", "return maps >= t",
     "test_segmentation.py::test_what_equals_the_threshold_is_not_drawn"),
    ("shrunk masks: half → two fifths", "m > 127 for m in small", "m > 102 for m in small",
     "test_segmentation.py::test_a_shrunk_pixel_is_of_the_object_if_more_than_half_of_it_was"),
    ("objects of masks above a half → a third", "return m > top / 2", "return m > top / 3",
     "test_segmentation.py::test_an_object_is_above_half_of_the_largest_value"),
    ("folds in order", "folds, shuffle=True, random_state=seed)", "folds)",
     "test_transfer.py::test_seed_deals_the_folds"),
    ("constant features 1e-6 → .1", "sd > 1e-6 * train_x", "sd > .1 * train_x",
     "test_transfer.py::test_probe_hears_what_varies_little"),
    ("rate of the trunk 1/10 → 1/2", "slower: float = .1,", "slower: float = .5,",
     "test_transfer.py::test_finetune_lets_the_trunk_walk_at_a_tenth_of_the_heads_rate"),
    ("tolerance of answers 1e-6 → 1e-3", "tol: float = 1e-6,    # Absolute", "tol: float = 1e-3,    # Absolute",
     "test_core.py::test_answers_must_agree_to_a_millionth"),
    ("flips .5 → .45", "[first:first + len(x)] < .5", "[first:first + len(x)] < .45",
     "test_data.py::test_a_flip_is_a_fair_coin"),
    ("angles 20° → 15°", "math.pi / 9", "math.pi / 12", SCENES),
    ("tints from .5 → .2", "tint=.5 + .5 * u(3)", "tint=.2 + .8 * u(3)", SCENES),
    ("light to .9 → 1", "light=.4 + .5 * u(3)", "light=.4 + .6 * u(3)", SCENES),
    ("objects flipped .5 → .6", "flip=(u() < .5).float()", "flip=(u() < .6).float()", SCENES),
    ("zooms 1.5 → 1.4", "ZOOMS = 1.5, 2.5, 4.", "ZOOMS = 1.4, 2.5, 4.", ZOOM),
    ("last column of photographs", "(width - size + 1)).long()", "(width - size - 5)).long()", ZOOM),
    ("black cloth reflects .15 → 0", "(.15 + .85 / 255 * objects)", "(0. + 1. / 255 * objects)",
     "test_data.py::test_black_cloth_reflects_a_little"),
    ("a fifth held out → a quarter", "RULE, HELD_OUT = 2, .2", "RULE, HELD_OUT = 2, .25",
     "test_folders.py::test_a_fifth_is_held_out_and_the_rest_is_trained_on"),
    ("first rule: a fifth → a quarter", "len(own) // 5)]", "len(own) // 4)]",
     "test_folders.py::test_the_first_rule_is_kept_for_old_files"),
    ("hash over 64 bits → 65", "/ 2**64 < fraction", "/ 2**65 < fraction",
     "test_folders.py::test_the_rule_is_a_hash_of_the_path_below_a_threshold"),
    ("far from square from a tenth → a quarter", "x > .1 for x in sides", "x > .25 for x in sides",
     "test_folders.py::test_sixty_photographs"),
    ("three hundred steps → two hundred", "LEAST_STEPS, LEAST_BATCH = 300, 8", "LEAST_STEPS, LEAST_BATCH = 200, 8",
     "test_folders.py::test_batch_and_passes_fit_the_pictures"),
    ("sums within .01 → .1", "- 1).abs() < .01", "- 1).abs() < .1",
     "test_maps.py::test_a_map_sums_to_one_within_a_hundredth"),
    ("colour over grey .6 → .5", "strength: float = .6", "strength: float = .5", "test_maps.py::test_overlay"),
    ("enlarged smoothly up to 2", "NEAREST if scale > 1 else", "NEAREST if scale > 2 else",
     "test_maps.py::test_pictures_are_enlarged_without_new_colors"),
    ("rounding of sides 1e-6 → .1", "int(n * zoom + 1e-6)", "int(n * zoom + .1)", "test_maps.py::test_fit_side"),
    ("middle of a pixel", "pixels.double() + .5 - low", "pixels.double() - low",
     "test_gallery.py::test_without_a_crop_the_way_back_is_bilinear_enlarging"),
    ("warned of less than a half → a fifth", "if seen < .5 else", "if seen < .2 else",
     "test_gallery.py::test_what_makes_an_answer_doubtful_is_said"),
    ("strongest hundredth → tenth", "quantile(.99)", "quantile(.9)",
     "test_explorer.py::test_the_strongest_hundredth_is_as_dark_as_can_be"),
    ("recall of a class → its precision", "recall=hits / images[k] if images[k]", "recall=hits / answers[k] if answers[k]",
     "test_report.py::test_rare_class_without_a_test_picture"),
    ("errors → right answers", "wrong = (said != labels)", "wrong = (said == labels)",
     "test_report.py::test_errors_are_the_most_confident"),
    ("most confident errors → least", "argsort(descending=True, stable=True)[:most]", "argsort(stable=True)[:most]",
     "test_report.py::test_errors_are_the_most_confident"),
    ("weights of classes that are not there", "/ (n > 0).sum() / n", "/ len(n) / n", "test_report.py::test_weights_of_classes"),
    ("smoothed targets weighed too", "return (weights[y] * each).mean()",
     "return F.cross_entropy(logits, y, weights, label_smoothing=smooth)", "test_report.py::test_balanced_loss"),
    ("foreign in one of its own in twenty → in ten", "rank[0] < FEW", "rank[0] < 2 * FEW", "test_foreign.py::test_the_threshold"),
    ("even maps: all levels → one", "min(shares) > EVEN", "max(shares) > EVEN",
     "test_foreign.py::test_even_maps_are_warned_of"),
    ("taps show what came before → what an activation in place made of it", "out.clone() if self.copy else out", "out",
     "test_backbones.py::test_taps_show_what_came_before_the_activation_in_place"),
    ("difference of an export, relative to its largest value → absolute", "apart / size.clamp_min(1e-30)", "apart",
     "test_export.py::test_difference"),
    ("hidden files that a pattern matches", "if not is_hidden(os.path.basename(n))", "if n",
     "test_gallery.py::test_what_is_named_is_taken_once_and_in_order"),
    ("adapted heads keep their statistics", "m.train(isinstance(m, torch.nn.BatchNorm1d))", "m.train(False)",
     "test_faithfulness.py::test_adapted_heads_have_the_statistics_of_what_they_get"),
    ("small pictures are blown up", "self.state.side > min(self.images[image]", "self.state.side < min(self.images[image]",
     "test_explorer.py::test_it_begins_with_photographs"),
    ("a lead of the wrong sign is a lead", "if self.sign == self.better:", "if self.sign in ('higher', 'lower'):",
     "test_claims.py::test_a_lead_is_a_lead_only_on_its_own_side"),
    ("two seeds judge a claim", "UNTOLD = 'not run', 'too few seeds'", "UNTOLD = 'not run',",
     "test_claims.py::test_two_seeds_leave_a_claim_open"),
    ("half the width of the interval over seeds", "float(t.ppf(.975, ", "float(t.ppf(.8, ",
     "test_claims.py::test_intervals_cover_the_truth"),
    ("rows of other seeds are lost", "known.get('runs') or [] if others(r)]", "known.get('runs') or [] if not others(r)]", "test_reproduce.py::test_it_goes_on_behind_what_is_done"),
    ("measured on other weights counts", "weights.get(f.name) == digest(f)", "f.name in weights", "test_reproduce.py::test_other_weights_are_measured_anew"),
    ("a swap of one level is one of all", "if level in (None, s + 1) else a)", "if level != 0 else a)",
     "test_faithfulness.py::test_one_level_is_exchanged_alone"),
    ("the crossed attack keeps the clean map", "((l_adv, m), (l, m_adv), (l_adv, m_adv))", "((l_adv, m), (l, m), (l_adv, m_adv))",
     "test_adversarial.py::test_crossed_attacks_are_what_they_say"),
    ("the global vector of dp is taken out", "if glob == 'none' and not (score == 'uniform' or score == 'pc'", "if glob == 'none' and not (score != 'odd' or score == 'pc'",
     "test_pruning.py::test_who_listens_is_not_pruned"),
    ("an interrupted training begins anew", "resume=(folder / 'checkpoint.safetensors').exists()", "resume=False",
     "test_studies.py::test_what_was_interrupted_goes_on_to_the_same_weights"),
    ("a lead whose interval holds zero is sure", "'leaning'\n", "'ahead'\n", "test_claims.py::test_an_interval_that_holds_zero_decides_nothing"),
    ("u has the rate of the rest", "lr * group.get('scale', 1)", "lr",
     'test_training.py::test_score_vectors_have_their_own_rate_and_decay'),
    ("one number of pictures too many", "if n is None: return data\n    if mine", "if n is None: return data\n    n += 1\n    if mine",
     'test_studies.py::test_few_pictures_of_a_named_set'),
    ("the learned temperature multiplies", "self.temperature * self.log_factor.exp()", "self.temperature / self.log_factor.exp()",
     'test_models.py::test_a_learned_temperature_starts_at_one_and_divides'),
    ("the largest feature, whatever the map", "(a * a.shape[1]).to(l.dtype)[:, None]", "1",
     'test_models.py::test_the_largest_of_each_channel'),
]


def pairs(old, new): return [(old, new)] if isinstance(old, str) else list(zip(old, new, strict=True))


def places(folder, text):
    "How often `text` stands in each module that has it."
    counts = {f: f.read_text(encoding='utf-8').count(text) for f in sorted((folder / 'ltpa').rglob('*.py'))}
    return {f: n for f, n in counts.items() if n}


def not_one_place(folder, text):
    "What is wrong if `text` does not stand in exactly one place, else None."
    found = places(folder, text)
    if not found: return f'in no module of ltpa: {text!r}'
    if sum(found.values()) > 1: return f'in {", ".join(f"{f.name} ({n})" for f, n in found.items())}: {text!r}'


def change(folder, old, new):
    "Change the one place of `old`, or of each of several, in the copy; what is wrong if that cannot be done."
    for before, after in pairs(old, new):
        if wrong := not_one_place(folder, before): return wrong
        file, = places(folder, before)
        file.write_text(file.read_text(encoding='utf-8').replace(before, after), encoding='utf-8')


def run_tests(folder, tests):
    "Runs in a process of its own, which ends with the code of pytest."
    os.chdir(folder)                                    # pytest looks for modules here first
    sys.path.insert(0, str(folder))
    os.environ.update(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE='1')         # for processes that tests start
    with open('log', 'w') as log:
        for stream in 1, 2: os.dup2(log.fileno(), stream)
    import pytest
    code = pytest.main(['-qx', '--tb=line', '-p', 'no:cacheprovider', '-c', str(ROOT / 'pytest.ini'),
                        '--rootdir', str(ROOT), *(str(ROOT / 'tests' / test) for test in tests)])
    files = [m.__file__ for name, m in sys.modules.items() if name.partition('.')[0] == 'ltpa']
    if not files or not all(Path(f).is_relative_to(folder) for f in files): code = ELSEWHERE
    sys.stdout.flush(); os._exit(code)                  # what a changed library left behind cannot keep it up


def outcome(processes, tests, old=(), new=()):
    "Exit code, what the tests said, seconds; the code is None where nothing could be run."
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='ltpa-mutant-', ignore_cleanup_errors=True) as folder:
        folder = Path(folder).resolve()
        shutil.copytree(ROOT / 'ltpa', folder / 'ltpa', ignore=shutil.ignore_patterns('__pycache__'))
        if wrong := change(folder, old, new): return None, wrong, 0.
        run = processes.Process(target=run_tests, args=(folder, tests))
        run.start(); run.join(PATIENCE)
        if hangs := run.is_alive(): run.kill(); run.join()
        said = (folder / 'log').read_text(encoding='utf-8', errors='replace')
        return FAILED if hangs else run.exitcode, said, time.monotonic() - begin


def table():
    "Markdown: for each file of tests the modules, and the changes behind the test that notices them."
    rows = {}
    for name, old, new, tests in MUTANTS:
        modules, noticed = rows.setdefault(tests.partition('::')[0], ([], defaultdict(list)))
        modules += [f.name for before, _ in pairs(old, new) for f in places(ROOT, before) if f.name not in modules]
        noticed[', '.join(f'`{test.partition("::")[2]}`' for test in tests.split())].append(name)
    lines = [f'| {file} | {" ".join(dict.fromkeys(modules))} | '
             + '<br>'.join(f'{"; ".join(names)}: {test}' for test, names in noticed.items()) + ' |'
             for file, (modules, noticed) in rows.items()]
    return '\n'.join(['| tests | where | what is changed: the test that fails |', '|---|---|---|', *lines])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pattern', nargs='?', default='', help='only mutants whose name or tests contain this')
    parser.add_argument('--table', action='store_true', help='print the table for CONTRIBUTING.md, run nothing')
    args = parser.parse_args()
    if args.table: print(table()); return
    chosen = [m for m in MUTANTS if args.pattern in m[0] or args.pattern in m[3]]
    if not chosen: sys.exit(f'no mutant has {args.pattern!r} in its name or its tests')
    fork = 'forkserver' in multiprocessing.get_all_start_methods()
    processes = multiprocessing.get_context('forkserver' if fork else 'spawn')
    if fork: processes.set_forkserver_preload(PRELOAD)
    begin, bad = time.monotonic(), 0
    every = list(dict.fromkeys(test for m in chosen for test in m[3].split()))
    code, said, seconds = outcome(processes, every)
    if code: sys.exit(f'{said}\nunchanged, the tests end with code {code}: see above')
    print(f'unchanged, all tests pass: {seconds:.1f} s', flush=True)
    for name, old, new, tests in chosen:
        code, said, seconds = outcome(processes, tests.split(), old, new)
        verdict = 'killed' if code == FAILED else 'SURVIVED' if code == 0 else 'NOT RUN'
        bad += verdict != 'killed'
        print(f'{verdict:8} {seconds:5.1f} s  {name}', flush=True)
        if verdict == 'NOT RUN': print(said if code is None else f'{said}\nthe tests end with code {code}', flush=True)
    print(f'{len(chosen) - bad} of {len(chosen)} killed in {time.monotonic() - begin:.0f} s')
    sys.exit(bad > 0)


if __name__ == '__main__': main()
