"""Packaging of mikanet.

``package_dir`` and the explicit ``twisted.plugins`` entry are both needed: only so do a wheel, an editable install and
a plain checkout all show the plugins to ``twisted.plugin``. ``twisted/`` and ``twisted/plugins/`` carry no
``__init__.py``, because those packages belong to Twisted.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

setup(
    name="mikanet",
    version="0.1.0.dev0",
    description="Five secure tunnels as one Twisted toolbox",
    long_description=(Path(__file__).parent / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["mikanet", "mikanet.*"]), "twisted.plugins"],
    package_dir={"": "."},
    package_data={"mikanet": ["py.typed", "_speedups.pyi"], "mikanet.megaki.arcangelo": ["*.php"]},
    include_package_data=True,
    # Optional: where it cannot be built, plain Python does the same.
    ext_modules=[Extension("mikanet._speedups", ["mikanet/_speedups.c"], optional=True, py_limited_api=True)],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    zip_safe=False,
    install_requires=[
        "Twisted[tls]>=25.5",
        "pyOpenSSL>=24.3",
        "service-identity>=24.1",
        "cryptography>=43",
        "zope.interface>=7.1",
        "treq>=24.9.1",
        "h11>=0.14",
        "idna>=3.7",
        "PyYAML>=6.0.1",
        "pyroute2>=0.7.12",
    ],
    extras_require={
        "test": ["hypothesis>=6.100", "pycryptodome>=3.20"],
        "docs": ["Sphinx>=7", "furo>=2024.8.6"],
        "pcap": ["pcap-ct>=1.3.0b3"],
    },
    entry_points={"console_scripts": ["mikanet = mikanet.cli.main:main"]},
    classifiers=[
        "Framework :: Twisted",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Internet :: Proxy Servers",
        "Typing :: Typed",
    ],
)
