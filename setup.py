from pathlib import Path

from setuptools import find_packages, setup

# The folders stay where users of OpenMMLab projects look for them; the import name is our own.
ROOT = 'projects/sa2va'

setup(
    name='sa2va-dpo',
    version='0.1.0',
    description='Preference training (DPO) of Sa2VA vessel segmentation as an MMEngine / XTuner plugin',
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    python_requires='>=3.11',
    package_dir={'sa2va_dpo': ROOT},
    packages=['sa2va_dpo', *(f'sa2va_dpo.{name}' for name in find_packages(ROOT))],
    package_data={'sa2va_dpo': ['assets/**/*', 'configs/**/*.py']},
    # The exact versions that are tested together stand in requirements/requirements.lock.
    install_requires=[
        'torch', 'torchvision', 'mmengine>=0.10.7', 'xtuner>=0.2.0', 'deepspeed<=0.19.6', 'transformers>=4.57,<5',
        'peft', 'opencv-python', 'numpy', 'pycocotools', 'safetensors', 'scikit-image', 'scipy', 'pillow',
        'tensorboard', 'tqdm', 'matplotlib', 'datasets', 'pyarrow', 'gradio',
    ],
    extras_require={'test': ['pytest', 'torchmetrics']},
)
