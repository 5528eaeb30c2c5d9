"""HTML pages, Markdown and CSV from run folders: ``cvae compare`` and ``cvae report``.

Neither torch nor the run's data is needed, so a copied run folder is enough.

=============  ====================================================================================
folders        run folders found and read
settings       the settings that differ between runs; runs grouped by protocol and by setting
paired         differences between settings over equal seeds: settled ones and noise
diagnosis      one run's numbers in sentences
figures        the figures of a comparison
svg            figures put into a page
pictures       strips, and the frames that the player shows
compare        the comparison as a table, a page, Markdown and CSV
report         the page of one run
render         Jinja2 templates to files
from_plots     the only module here that uses ``cvaecli.plots``
=============  ====================================================================================
"""
