import pytest

from services.common.errors import Reason, VoxfleetError
from services.metadata.app.listing import MAX_PAGE_SIZE, next_token, page_of, parse_filter
from services.metadata.servicers.resources import check_mask


def test_a_token_belongs_to_its_list():
    token = next_token("row|9", filter_text="state=RUNNING")
    assert page_of(10, token, filter_text="state=RUNNING").after == "row|9"
    for other in ({"filter_text": "state=FAILED"}, {"order_by": "create_time"}, {"query": "x"}):
        with pytest.raises(VoxfleetError) as caught:
            page_of(10, token, **other)
        assert caught.value.reason is Reason.INVALID_PAGE_TOKEN


@pytest.mark.parametrize("token", ["zzz", "e30=", "%%%", "bnVsbA=="])
def test_a_token_from_elsewhere_is_refused(token):
    with pytest.raises(VoxfleetError) as caught:
        page_of(10, token)
    assert caught.value.reason is Reason.INVALID_PAGE_TOKEN


def test_page_sizes():
    assert page_of(0, "").size == 50
    assert page_of(10**6, "").size == MAX_PAGE_SIZE
    with pytest.raises(VoxfleetError):
        page_of(-1, "")


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", {}),
        ("state=RUNNING", {"state": "RUNNING"}),
        ('labels.who="Anna B" AND kind=rvc.train', {"labels.who": "Anna B", "kind": "rvc.train"}),
    ],
)
def test_filters(text, terms):
    assert parse_filter(text) == terms


@pytest.mark.parametrize("text", ["state", "a=b OR c=d", "=x", "state=a b"])
def test_a_filter_that_cannot_be_read_is_refused(text):
    with pytest.raises(VoxfleetError):
        parse_filter(text)


def test_an_update_names_its_fields():
    assert check_mask(["labels"], ("labels", "priority")) == ["labels"]
    for paths in ([], ["name"]):
        with pytest.raises(VoxfleetError):
            check_mask(paths, ("labels",))
