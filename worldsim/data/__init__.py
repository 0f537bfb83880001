"""Episodes, datasets and the loader."""

from worldsim.data.arrays import ArraySource as ArraySource
from worldsim.data.arrays import save_arrays as save_arrays
from worldsim.data.episode import Episode as Episode
from worldsim.data.info import DataInfo as DataInfo
from worldsim.data.info import SplitInfo as SplitInfo
from worldsim.data.loader import Loader as Loader
from worldsim.data.source import export_arrays as export_arrays
from worldsim.data.source import open_source as open_source
from worldsim.data.source import read_episodes as read_episodes
from worldsim.data.source import read_info as read_info
