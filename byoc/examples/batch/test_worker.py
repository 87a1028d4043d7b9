from worker import Summarise, Texts

TEXT = "Water drives the wheel. The wheel drives the mill. It rains."


def test_the_sentence_that_says_most_is_chosen():
    assert Texts().summarise(Summarise(text=TEXT)) == {"summary": "Water drives the wheel."}
