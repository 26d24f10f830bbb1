"""Small classifiers for small images, registered in timm's registry by being imported.

==================  ======  ==========  ================================
name                images  D           own keywords
==================  ======  ==========  ================================
``small_cnn``       any     32 · width  ``width=32``
``mnist_cnn``       28x28   200         ``width=32``
``lenet5``          28x28   20 · width  ``width=6``
``resnet20_cifar``  any     4 · width   ``width=16``, ``shortcut="pad"``
``resnet18_cifar``  any     8 · width   ``width=64``
``resnet34_cifar``  any     8 · width   ``width=64``
``resnet50_cifar``  any     32 · width  ``width=64``
``vgg16_bn_cifar``  any     8 · width   ``width=64``
==================  ======  ==========  ================================

D is the number of features. All take ``num_classes`` and ``in_chans`` too.
"""

from phalanx.nn.backbones import (  # noqa: F401  # importing a family registers it
    lenet5,
    mnist_cnn,
    resnet20_cifar,
    resnet_cifar,
    small_cnn,
    vgg_cifar,
)
