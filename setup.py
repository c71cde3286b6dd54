from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='sa2va-dpo',
    version='0.1.0',
    description='Preference training (DPO) of Sa2VA vessel segmentation as an MMEngine / XTuner plugin',
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    python_requires='>=3.11',
    packages=find_packages(include=['projects', 'projects.*']),
    package_data={'projects.sa2va': ['assets/**/*']},
    # The exact versions that are tested together stand in requirements/requirements.lock.
    install_requires=[
        'torch', 'torchvision', 'mmengine>=0.10.7', 'xtuner>=0.2.0', 'deepspeed<=0.19.6', 'transformers>=4.57,<5',
        'peft', 'opencv-python', 'numpy', 'pycocotools', 'safetensors', 'scikit-image', 'scipy', 'pillow',
        'tensorboard', 'tqdm', 'matplotlib', 'datasets', 'pyarrow', 'gradio',
    ],
    extras_require={'test': ['pytest', 'torchmetrics']},
)
