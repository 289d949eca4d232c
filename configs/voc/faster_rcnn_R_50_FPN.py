"""Sampling-free Faster R-CNN R50 on PASCAL VOC 07+12 in the authors' recipe, 14k iterations.

Command:  python train_net.py --config-file configs/voc/faster_rcnn_R_50_FPN.py --num-gpus 8
Data:     $DETECTRON2_DATASETS/VOC2007 and VOC2012, as Detectron2's documentation has it.
Hardware: 8 GPUs of 8 GB or more.
Cost:     14,000 iterations of 16 images; not measured. The schedule is that of the authors'
          RetinaNet; theirs for Faster R-CNN is not known to us.
Expected: not run by us. Published: 81.5 AP50 on VOC07 test, sampled 80.9; equal runs differ by up
          to 1.1, so that gain is inside the noise.
"""

from ..common.authors import authors_recipe
from ..common.voc import MAX_ITER, NUM_CLASSES, dataloader, lr_multiplier
from ..faster_rcnn.faster_rcnn_R_50_FPN_1x import model, optimizer, train

model.roi_heads.num_classes = NUM_CLASSES
authors_recipe(model, dataloader, optimizer)
train.max_iter = MAX_ITER
train.output_dir = "output/voc_faster_rcnn_R_50_FPN"
