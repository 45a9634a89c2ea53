// Exchanges the token for a cookie that this page's scripts cannot read.
const form = document.getElementById("login");
const trouble = document.getElementById("trouble");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = document.getElementById("token").value;
  trouble.hidden = true;
  try {
    const answer = await fetch("api/v1/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
    if (answer.ok) {
      location.reload();
      return;
    }
    trouble.textContent = "That is not the token.";
  } catch {
    trouble.textContent = "The service does not answer.";
  }
  trouble.hidden = false;
});
